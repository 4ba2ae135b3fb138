"""Pruning by a 1.X file, with a training function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, final

from inc_torch.callbacks import PruningCallbacks, TrainingConfig
from inc_torch.conf import Conf
from inc_torch.conf.config import PruningConf
from inc_torch.config import WeightPruningConfig
from inc_torch.config._base import option_names
from inc_torch.core.errors import ConfigTypeError, HookOrderError, did_you_mean
from inc_torch.core.report import CompressionReport
from inc_torch.experimental._settings import Setting, function
from inc_torch.experimental.component import Component
from inc_torch.pruners import Pruner
from inc_torch.training import CompressionManager

__all__ = ["Pruning"]

_OPTIONS: Final = {
    "start_epoch": "start_step",
    "end_epoch": "end_step",
    "update_frequency": "pruning_frequency",
    "update_frequency_on_step": "pruning_frequency",
    "max_sparsity_ratio_per_layer": "max_sparsity_ratio_per_op",
    "prune_domain": "pruning_scope",
    "names": "op_names",
} | {name: name for name in option_names(WeightPruningConfig) if name not in {"pruning_configs", "backend"}}
"""What can be changed for all pruners, and what it is called today."""


@final
class Pruning(Component):
    """Make weights zero while ``train_func`` trains the model.

    Args:
        conf_fname_or_obj: A path to YAML, a dict, a `inc_torch.conf.config.PruningConf`, or None: all layers to 97 %,
            in the epochs 0 to 4.

    Example:
        >>> from torch import nn, optim
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prune = Pruning({"pruning": {"approach": {"weight_compression": {"target_sparsity": 0.5, "end_epoch": 1}}}})
        >>> def train(model):
        ...     optimizer = optim.SGD(model.parameters(), lr=0.1)
        ...     for epoch in range(2):
        ...         prune.on_epoch_begin(epoch)
        ...         prune.on_step_begin(0)
        ...         model(torch.ones(4, 8)).square().mean().backward()
        ...         prune.on_before_optimizer_step()
        ...         optimizer.step()
        ...         prune.on_after_optimizer_step()
        ...         prune.on_step_end()
        ...         prune.on_epoch_end()
        >>> import torch
        >>> prune.model, prune.train_func = model, train
        >>> prune.fit() is model, prune.report().sparsity
        (True, 0.5)

    Source: INC 2.6.1 ``experimental.Pruning``; differs in that no evaluation is needed, that masks are final even where
    the loop forgets hooks, and that as many units are pruned as are asked for, where INC prunes one more.
    """

    conf_class: ClassVar[type[Conf]] = PruningConf
    pruning_func = Setting("Another word for ``train_func``.", function, also="train_func")
    q_func = Setting("Another word for ``train_func``.", function, also="train_func")

    def __init__(self, conf_fname_or_obj: Any = None) -> None:  # noqa: ANN401
        super().__init__(conf_fname_or_obj)
        self._changes: dict[str, Any] = {}

    @property
    def pruners(self) -> list[Pruner]:
        """What prunes; empty before the training begins."""
        callbacks = [] if self._manager is None else self._manager.callbacks.callbacks_list
        return [pruner for each in callbacks if isinstance(each, PruningCallbacks) for pruner in each.pruners]

    def update_items_for_all_pruners(self, **options: object) -> None:
        """Change options of all pruners, before the first step of the training.

        Args:
            **options: Under their name in the file, or in `inc_torch.WeightPruningConfig`.

        Raises:
            ConfigTypeError: An option is unknown.
            HookOrderError: The training is past its first step.
        """
        for name, value in options.items():
            if name not in _OPTIONS:
                message = f"update_items_for_all_pruners has no option {name!r}.{did_you_mean(name, _OPTIONS)}"
                raise ConfigTypeError(message)
            self._changes[_OPTIONS[name]] = value
        manager = self._manager
        if manager is not None and manager.callbacks.is_training:
            if manager.callbacks.progress.step:
                message = (
                    f"update_items_for_all_pruners was called after {manager.callbacks.progress.step} optimizer steps: "
                    "expected it before the first, as masks depend on it from the start."
                )
                raise HookOrderError(message)
            manager.callbacks.give_up()
            self._manager = None
            self.on_train_begin()

    update_config = update_items_for_all_pruners

    def get_sparsity_ratio(self) -> tuple[float, float, float]:
        """Return the ``ratios`` of the report.

        These are the zeros of pruned layers over all matrices and over all values, and pruned units over all matrices.

        Raises:
            HookOrderError: No training has begun.
        """
        over_matrices, over_all, blockwise = self.report().ratios.values()
        return over_matrices, over_all, blockwise

    def report(self) -> CompressionReport:
        """Measure what every module was asked for and has reached.

        Raises:
            HookOrderError: No training has begun.
        """
        if self._manager is None:
            message = "Pruning.report was called before a training: call fit first."
            raise HookOrderError(message)
        return self._manager.report()

    def _training_configs(self) -> Sequence[TrainingConfig]:
        config: WeightPruningConfig = self._config_of(WeightPruningConfig)
        if not self._changes:
            return (config,)
        local = [{**entry, **self._changes} for entry in config.pruning_configs]
        return (config.replace(**self._changes, pruning_configs=local),)

    def _train_section(self) -> Any:  # noqa: ANN401
        return self._cfg.pruning.train

    def _begun(self, manager: CompressionManager) -> None:
        """Nothing to add: the manager is all of it."""
