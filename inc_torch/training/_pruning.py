"""Pruning without hooks in the loop: the model's forward and the optimizer's step call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, final

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from inc_torch.config import WeightPruningConfig, read_configs
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.names import unwrapped
from inc_torch.training import CompressionManager, prepare_compression

__all__ = ["prepare_pruning"]


def prepare_pruning(
    model: nn.Module,
    config: WeightPruningConfig | str | PathLike[str],
    optimizer: Optimizer | None = None,
    dataloader: Iterable[Any] | None = None,
    loss_func: Callable[..., Any] | None = None,
    framework: str = "pytorch",
    device: str | torch.device | None = None,
) -> CompressionManager:
    """Prune ``model`` while it is trained by a loop that knows nothing of it.

    From now on each forward in training mode begins a step, and each ``optimizer.step()`` takes scores before it and
    writes zeros after it. Learning rate schedulers, gradient scalers and closures work as before; forwards for
    evaluation change nothing. Only the end has no sign of its own: call ``on_train_end()`` on what is returned, for the
    final check of the sparsity, and to let model and optimizer go.

    Args:
        model: The model to train, changed in place.
        config: What to prune, or the path of a YAML file with it.
        optimizer: The one that steps.
        dataloader: INC's argument for types that prune after training; not in this version.
        loss_func: As ``dataloader``.
        framework: INC's argument; ``"pytorch"``.
        device: As ``dataloader``.

    Returns:
        The manager: its ``report()``, ``save()`` and ``state_dict()`` are there as with `prepare_compression`.

    Raises:
        ConfigError: There is no optimizer, or the configuration is none of pruning.

    Example:
        >>> import torch
        >>> from inc_torch import WeightPruningConfig, prepare_pruning
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> config = WeightPruningConfig(target_sparsity=0.5, start_step=1, end_step=2)
        >>> pruning = prepare_pruning(model, config, optimizer)
        >>> for _ in range(4):
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruning.on_train_end()
        >>> pruning.report().sparsity
        0.5

    Source: INC 2.6.1 ``prepare_pruning``, which prunes in forwards of an evaluation too, takes scores before a closure
    has computed gradients, and leaves a model that cannot be pickled.
    """
    _refuse_unused(framework, dataloader=dataloader, loss_func=loss_func, device=device)
    if not isinstance(optimizer, Optimizer):
        message = f"prepare_pruning(optimizer={optimizer!r}): expected the optimizer that trains the model."
        raise ConfigTypeError(message)
    manager = prepare_compression(model, _configs(config))
    handle = unwrapped(model).register_forward_pre_hook(_StepBegin(manager))
    manager.register_hook("on_train_end", handle.remove)
    manager.callbacks.follow(optimizer)
    manager.on_train_begin()
    return manager


def _refuse_unused(framework: str, **given: object) -> None:
    if framework != "pytorch":
        message = f"prepare_pruning(framework={framework!r}): expected 'pytorch', the only framework that is pruned."
        raise ConfigError(message)
    if unused := [name for name, value in given.items() if value is not None]:
        message = (
            f"prepare_pruning({unused[0]}=...): only pruning after training takes it, which this version cannot do. "
            "Leave it out, and give the optimizer."
        )
        raise ConfigError(message)


def _configs(config: object) -> Sequence[WeightPruningConfig]:
    if isinstance(config, WeightPruningConfig):
        return [config]
    if not isinstance(config, str | PathLike):
        message = f"prepare_pruning(config={config!r}): expected a WeightPruningConfig or the path of a YAML file."
        raise ConfigTypeError(message)
    configs = read_configs(config)
    pruning = [entry for entry in configs if isinstance(entry, WeightPruningConfig)]
    if len(pruning) < len(configs):
        message = (
            f"prepare_pruning(config={config!r}): expected pruning alone; prepare_compression takes all techniques."
        )
        raise ConfigError(message)
    return pruning


@final
class _StepBegin:
    """What the model calls before a forward. A copy of it, or one that was saved whole, begins nothing.

    Args:
        manager: Whose steps begin.
    """

    def __init__(self, manager: CompressionManager | None = None) -> None:
        self._manager = manager
        self._batch = 0

    def __reduce__(self) -> tuple[type[_StepBegin], tuple[()]]:
        return _StepBegin, ()

    def __call__(self, module: nn.Module, _inputs: object) -> None:
        if self._manager is not None and module.training and torch.is_grad_enabled():
            self._manager.on_step_begin(self._batch)
            self._batch += 1
