"""Pruning without hooks in the loop: the model's forward and the optimizer's step call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, final

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from inc_torch.callbacks import Callback
from inc_torch.config import WeightPruningConfig, read_configs
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.names import unwrapped
from inc_torch.core.report import Finding
from inc_torch.pruners import PrunerSpec, select_layers
from inc_torch.pruners.calibrated import prune_retrain_free, prune_sparse_gpt
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
    """Prune ``model`` while it is trained by a loop that knows nothing of it, or at once with calibration data.

    With an ``optimizer``, from now on each forward in training mode begins a step, and each ``optimizer.step()`` takes
    scores before it and writes zeros after it. Learning rate schedulers, gradient scalers and closures work as before;
    forwards for evaluation change nothing. Only the end has no sign of its own: call ``on_train_end()`` on what is
    returned, for the final check of the sparsity, and to let model and optimizer go.

    With a ``dataloader`` a trained transformer is pruned by SparseGPT (``pruning_type="sparse_gpt"``), block by block,
    before this returns, or any model by what the loss says of its channels (``"retrain_free"``); see
    `inc_torch.pruners.calibrated`.

    Args:
        model: The model to train, changed in place.
        config: What to prune, or the path of a YAML file with it.
        optimizer: The one that steps, for types that prune while a model is trained.
        dataloader: Batches of inputs, for a type that prunes after training.
        loss_func: For ``retrain_free``: called with the output and the label of a batch; None takes the ``loss`` of the
            model's output.
        framework: INC's argument; ``"pytorch"``.
        device: Where blocks, or the model, run that are pruned after training; None is where they are.

    Returns:
        The manager: its ``report()``, ``save()`` and ``state_dict()`` are there as with `prepare_compression`.

    Raises:
        ConfigError: The configuration is none of pruning, or has types of both kinds, or what its types need is
            missing.

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
    if framework != "pytorch":
        message = f"prepare_pruning(framework={framework!r}): expected 'pytorch', the only framework that is pruned."
        raise ConfigError(message)
    configs = _configs(config)
    specs = [spec for entry in configs for spec in entry.to_specs()]
    if any(spec.after_training for spec in specs):
        _refuse_unused("a type that prunes after training", optimizer=optimizer)
        if not any(spec.after_training == "retrain_free" for spec in specs):
            _refuse_unused("'sparse_gpt'", loss_func=loss_func)
        return _pruned_at_once(model, specs, dataloader, loss_func, device)
    _refuse_unused("a type that prunes while a model is trained", dataloader=dataloader, loss_func=loss_func)
    if not isinstance(optimizer, Optimizer):
        message = f"prepare_pruning(optimizer={optimizer!r}): expected the optimizer that trains the model."
        raise ConfigTypeError(message)
    manager = prepare_compression(model, configs)
    handle = unwrapped(model).register_forward_pre_hook(_StepBegin(manager))
    manager.callbacks.follow(optimizer, handle)
    manager.on_train_begin()
    return manager


def _refuse_unused(kind: str, **given: object) -> None:
    if unused := [name for name, value in given.items() if value is not None]:
        message = f"prepare_pruning({unused[0]}=...): {kind} does not use it. Leave it out, or choose another type."
        raise ConfigError(message)


def _pruned_at_once(
    model: nn.Module,
    specs: Sequence[PrunerSpec],
    dataloader: Iterable[Any] | None,
    loss_func: Callable[..., Any] | None,
    device: str | torch.device | None,
) -> CompressionManager:
    """Prune a trained model, and return a manager whose training is over."""
    if not all(spec.after_training for spec in specs):
        message = (
            "prepare_pruning: some pruning_configs prune after training, some while a model is trained: expected one "
            "kind. Prune with two configurations, one after the other."
        )
        raise ConfigError(message)
    if dataloader is None:
        kind = specs[0].after_training
        message = f"prepare_pruning(dataloader=None): expected batches of inputs, by which {kind!r} prunes."
        raise ConfigError(message)
    batches = dataloader if len(specs) == 1 else list(dataloader)
    findings: list[Finding] = []
    for group, spec in enumerate(specs):
        if spec.after_training == "retrain_free":
            found = prune_retrain_free(model, spec, batches, loss_func, device)
        else:
            found = _pruned_by_sparse_gpt(model, spec, batches, device)
        findings += [finding if finding.group is None else replace(finding, group=group) for finding in found]
    manager = prepare_compression(model, _Pruned(findings))
    manager.on_train_begin()
    manager.on_train_end()
    return manager


def _pruned_by_sparse_gpt(
    model: nn.Module, spec: PrunerSpec, batches: Iterable[Any], device: str | torch.device | None
) -> list[Finding]:
    selection = select_layers(unwrapped(model), spec)
    names = [layer.name for layer in selection.layers]
    report = prune_sparse_gpt(model, batches, spec.pattern, spec.target, layers=names, device=device)
    return [*(finding for finding in report.findings() if finding.module in names), *selection.left_dense]


@final
class _Pruned(Callback):
    """What was pruned before, for the report."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self._findings = tuple(findings)

    def findings(self) -> Iterable[Finding]:
        return self._findings


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
