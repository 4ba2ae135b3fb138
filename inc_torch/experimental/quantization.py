"""Quantization by a 1.X file, after training or while a function trains."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, final

from torch import nn

from inc_torch.callbacks import TrainingConfig
from inc_torch.conf import Conf
from inc_torch.conf.config import QuantConf
from inc_torch.config import PostTrainingQuantConfig, QuantizationAwareTrainingConfig, options
from inc_torch.core.errors import ConfigTypeError
from inc_torch.data import Datasets
from inc_torch.experimental._evaluation import loader_in
from inc_torch.experimental._settings import Setting, function, loader
from inc_torch.experimental.component import Component
from inc_torch.objective import objective_custom_registry
from inc_torch.quantization import fit as quantize
from inc_torch.training import fit as train_quantized
from inc_torch.training import prepare_compression

__all__ = ["Quantization"]

_PERFORMANCE_ONLY: Final = "PERFORMANCE_ONLY"
"""A variable of the environment: 1 leaves the accuracy out, 0 looks at it, whatever the file says."""


@final
class Quantization(Component):
    """Make a model int8: after training by calibration data, or by a training function.

    Args:
        conf_fname_or_obj: A path to YAML, a dict, a `inc_torch.conf.config.QuantConf`, or None: static int8 after
            training.

    Attributes:
        q_func: Trains the model, where the file asks for quantization-aware training; else it may run the model on
            calibration data, in place of a loader. Also ``calib_func`` and ``train_func``.

    Example:
        >>> import torch
        >>> quantizer = Quantization()
        >>> quantizer.model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> quantizer.calib_dataloader = [torch.randn(4, 8) for _ in range(4)]
        >>> type(quantizer.fit()[0]).__name__
        'Int8Linear'

    Source: INC 2.6.1 ``experimental.Quantization``; differs in that errors are raised, where INC returns None, and that
    the best model is returned with a warning where none meets the goal.
    """

    conf_class: ClassVar[type[Conf]] = QuantConf
    calib_func = Setting("Another word for ``q_func``.", function, also="train_func")
    q_func = Setting("Trains the model, or runs it on calibration data.", function, also="train_func")

    def __init__(self, conf_fname_or_obj: Any = None) -> None:  # noqa: ANN401
        super().__init__(conf_fname_or_obj)
        self._calib_dataloader: Iterable[Any] | None = None
        self._objective: str | None = None
        self._fitted: nn.Module | None = None

    @property
    def calib_dataloader(self) -> Iterable[Any] | None:
        """Batches for ranges of inputs: those assigned, or those that the file describes."""
        if self._calib_dataloader is None:
            section = self._cfg.quantization.calibration
            self._calib_dataloader = loader_in(section.dataloader, keeps_order=True)
        return self._calib_dataloader

    @calib_dataloader.setter
    def calib_dataloader(self, given: object) -> None:
        self._calib_dataloader = loader(given, type(self).__name__, "calib_dataloader")  # type: ignore[assignment]

    @property
    def objective(self) -> str | None:
        """What counts besides accuracy: assign an object with ``start`` and ``end``, or with ``measure``."""
        return self._objective

    @objective.setter
    def objective(self, given: object) -> None:
        kind = given if isinstance(given, type) else type(given)
        if kind is str:
            message = f"Quantization.objective={given!r}: expected an object; a name stands in the file."
            raise ConfigTypeError(message)
        objective_custom_registry(kind.__name__, kind)
        self._objective = kind.__name__

    @property
    def strategy(self) -> Any:  # noqa: ANN401
        """The `inc_torch.tuning.TuningResult` of the last `fit` that evaluated; None before."""
        return getattr(self._fitted, "tuning", None)

    def dataset(self, dataset_type: str, *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        """Make one of the built-in data sets, see `inc_torch.data.Datasets`."""
        return Datasets("pytorch")[dataset_type](*args, **kwargs)

    def fit(self) -> Any:  # noqa: ANN401  a module, whose own attributes are used
        """Quantize, searching if there is an evaluation.

        Returns:
            The int8 model: a copy after calibration, the model itself after training.

        Raises:
            ConfigError: There is no model, or neither calibration data nor a function.
        """
        model = self._required_model()
        config = self._config()
        with _options_of_process(self._cfg.tuning):
            if isinstance(config, QuantizationAwareTrainingConfig):
                self._fitted = self._trained(model)
            else:
                self._fitted = quantize(
                    model,
                    config,
                    calib_dataloader=None if self.train_func is not None else self.calib_dataloader,
                    calib_func=self.train_func,
                    **self._evaluation(),
                )
        return self._fitted

    def _trained(self, model: nn.Module) -> nn.Module | None:
        train = self._required_training()
        self._manager = manager = prepare_compression(model, list(self._training_configs()))
        self._is_fitting = True
        try:
            return train_quantized(manager, train, **self._evaluation())  # type: ignore[arg-type]
        finally:
            self._is_fitting = False

    def _config(self) -> PostTrainingQuantConfig | QuantizationAwareTrainingConfig:
        config = next(
            config
            for config in self._configs
            if isinstance(config, PostTrainingQuantConfig | QuantizationAwareTrainingConfig)
        )
        changes: dict[str, object] = {} if self._objective is None else {"objective": self._objective}
        if (asked := os.environ.get(_PERFORMANCE_ONLY)) is not None:
            changes["performance_only"] = asked not in {"0", "", "False", "false"}
        return config.replace(**changes) if changes else config

    def _training_configs(self) -> Sequence[TrainingConfig]:
        config = self._config()
        return (config,) if isinstance(config, QuantizationAwareTrainingConfig) else ()

    def _train_section(self) -> Any:  # noqa: ANN401
        return self._cfg.quantization.train


@contextmanager
def _options_of_process(tuning: Any) -> Iterator[None]:  # noqa: ANN401  the section ``tuning``
    """What the file says of seed and workspace, for as long as it is used."""
    asked = {
        "random_seed": tuning.random_seed,
        "workspace": tuning.workspace.path,
        "resume_from": tuning.workspace.resume,
    }
    before = {name: getattr(options, name) for name in asked}
    try:
        for name, value in asked.items():
            if value is not None:
                setattr(options, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(options, name, value)
