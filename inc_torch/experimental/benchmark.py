"""Timing a model by a 1.X file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Final, final

from torch import nn

from inc_torch.benchmark import BenchmarkResult
from inc_torch.benchmark import fit as measure
from inc_torch.conf import Conf
from inc_torch.conf._evaluation import benchmark_config, metric_of
from inc_torch.conf.config import BenchmarkConf
from inc_torch.config import BenchmarkConfig
from inc_torch.core.errors import ConfigError, did_you_mean
from inc_torch.experimental._evaluation import loader_in, postprocessed, postprocessing_in
from inc_torch.experimental._settings import Setting, function, loader
from inc_torch.experimental.component import Component

__all__ = ["Benchmark"]

_MODES: Final = ("performance", "accuracy")


@final
class Benchmark(Component):
    """Time a model, or measure its accuracy.

    Args:
        conf_fname_or_obj: A path to YAML, a dict, a `inc_torch.conf.config.BenchmarkConf`, or None.

    Attributes:
        b_func: A benchmark of your own: each call of the model that it is given is an iteration.
        results: Of the last run; None before.

    Example:
        >>> import torch
        >>> evaluator = Benchmark({"evaluation": {"performance": {"warmup": 1, "iteration": 5}}})
        >>> evaluator.model = nn.Linear(8, 2)
        >>> evaluator.b_dataloader = [torch.randn(4, 8) for _ in range(5)]
        >>> accuracy, batch_size, seconds = evaluator(quiet=True)["performance"]
        >>> batch_size, len(seconds)
        (4, 4)

    Source: INC 2.6.1 ``experimental.Benchmark``; differs in that results are returned, and that the script is not run
    anew in each instance.
    """

    conf_class: ClassVar[type[Conf]] = BenchmarkConf
    b_func = Setting("Runs the model that it is given; each call of it is an iteration.", function)
    b_dataloader = Setting("Batches to time.", loader)
    dataloader = Setting("Another word for ``b_dataloader``.", loader, also="b_dataloader")
    results = Setting("Of the last run.")

    def __call__(self, mode: str = "performance", *, quiet: bool = False) -> BenchmarkResult:
        """The same as `fit`."""
        return self.fit(mode, quiet=quiet)

    @property
    def eval_dataloader(self) -> Iterable[Any] | None:
        """The same as ``b_dataloader``."""
        batches: Iterable[Any] | None = self.b_dataloader
        return batches

    @eval_dataloader.setter
    def eval_dataloader(self, given: object) -> None:
        self.b_dataloader = given

    def fit(self, mode: str = "performance", *, quiet: bool = False) -> BenchmarkResult:
        """Run the benchmark, and print what came of it.

        Args:
            mode: ``"performance"``, or ``"accuracy"``, which needs a metric.
            quiet: Print nothing.

        Returns:
            Everything measured; ``result["performance"]`` is INC's ``(accuracy, batch size, seconds)``.

        Raises:
            ConfigError: There is no model, no metric to measure accuracy with, or the mode is unknown.
        """
        model: nn.Module = self._required_model()
        if mode not in _MODES:
            message = f"Benchmark got mode={mode!r}: expected one of {', '.join(_MODES)}.{did_you_mean(mode, _MODES)}"
            raise ConfigError(message)
        section = getattr(self._cfg.evaluation, mode)
        batches = self.b_dataloader
        if batches is None and section is not None:
            batches = loader_in(section.dataloader, keeps_order=True)
        metric = self._measured_by(mode, section, batches)
        config = (
            self._config_of(BenchmarkConfig)
            if self._is_in_python
            else benchmark_config(self._cfg.evaluation, self._cfg.device, mode)
        )
        self.results = measure(model, config, b_dataloader=batches, b_func=self.b_func, metric=metric, quiet=quiet)
        found: BenchmarkResult = self.results
        return found

    def _measured_by(self, mode: str, section: Any, batches: object) -> object:  # noqa: ANN401
        """The metric; for performance only one that was assigned, and only where there are labels."""
        metric = self._chosen("metric", metric_of(self._cfg.evaluation)) if mode == "accuracy" else self.metric
        if mode == "accuracy" and (metric is None or batches is None):
            missing = "metric" if metric is None else "b_dataloader"
            message = f"Benchmark has no {missing} to measure accuracy with: assign one, or name it in the file."
            raise ConfigError(message)
        if metric is None or batches is None:
            return None
        change = self._chosen("postprocess", postprocessing_in(section))
        return postprocessed(metric, change)
