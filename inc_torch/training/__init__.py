"""Compression inside your own training loop: `prepare_compression` and the manager it returns."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, NoReturn, final

from torch import nn
from torch.distributed import ProcessGroup

from inc_torch.callbacks import Callback, TrainingConfig, build_callbacks
from inc_torch.config import (
    DistillationConfig,
    IntermediateLayersKnowledgeDistillationLossConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    SelfKnowledgeDistillationLossConfig,
    WeightPruningConfig,
)
from inc_torch.core.borrowing import Snapshot
from inc_torch.core.dispatcher import Dispatcher
from inc_torch.core.errors import (
    ConfigError,
    ConfigTypeError,
    CopyError,
    IncTorchWarning,
    InexactWarning,
    LoopWarning,
    StateError,
)
from inc_torch.core.names import unwrapped
from inc_torch.core.ranks import Ranks
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.core.state import FORMAT, check_keys, random_state, set_random_state
from inc_torch.core.user_warning import warn_user
from inc_torch.export import adorn, attach_report, save

if TYPE_CHECKING:
    from inc_torch.config import Torch2ONNXConfig
    from inc_torch.core.plan import Plan
    from inc_torch.export.onnx import OnnxExport
    from inc_torch.training._fit import fit
    from inc_torch.training._pruning import prepare_pruning

__all__ = [
    "CallBacks",
    "CompressionManager",
    "DistillationConfig",
    "IntermediateLayersKnowledgeDistillationLossConfig",
    "KnowledgeDistillationLossConfig",
    "Plan",
    "QuantizationAwareTrainingConfig",
    "SelfKnowledgeDistillationLossConfig",
    "WeightPruningConfig",
    "fit",
    "prepare_compression",
    "prepare_pruning",
]

CallBacks = Dispatcher
"""INC's name for the object that runs the hooks."""


_LATER = {
    "Plan": "inc_torch.core.plan",
    "fit": "inc_torch.training._fit",
    "prepare_pruning": "inc_torch.training._pruning",
}
"""Where names stand that are imported when they are asked for: a loop with hooks does without."""


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def prepare_compression(
    model: nn.Module,
    confs: TrainingConfig | Callback | Sequence[TrainingConfig | Callback],
    *,
    process_group: ProcessGroup | None = None,
) -> CompressionManager:
    """Make ``model`` ready to be compressed while it is trained.

    The model is changed in place and stays the same object with the same Parameters, so an optimizer, a Trainer or
    any other reference made before or after is right. `torch.compile`, DistributedDataParallel and ``fully_shard`` may
    come before or after; PEFT's adapters have to be there before.

    Args:
        model: The model to train.
        confs: One config or `Callback`, or several; their order does not matter.
        process_group: In a distributed run, the processes that train this one model together. By default all of
            them: each has to prepare it in the same way and to call the same hooks.

    Returns:
        The manager whose hooks the training loop calls.

    Raises:
        ConfigError: No config, an object that is none, or a config that fits no layer of the model.
        ModelError: The model is wrapped by something that hides its weights, such as DataParallel.

    Example:
        >>> import torch
        >>> from inc_torch import WeightPruningConfig, prepare_compression
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> config = WeightPruningConfig(target_sparsity=0.5, pruning_type="magnitude", pattern="4x1")
        >>> manager = prepare_compression(model, config)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> manager.on_train_begin()
        >>> for index in range(2):
        ...     manager.on_step_begin(index)
        ...     output = model(torch.ones(4, 8))
        ...     loss = manager.on_after_compute_loss(None, output, output.square().mean())
        ...     loss.backward()
        ...     manager.on_before_optimizer_step()
        ...     optimizer.step()
        ...     manager.on_after_optimizer_step()
        ...     optimizer.zero_grad()
        ...     manager.on_step_end()
        >>> manager.on_train_end()
        >>> manager.report().sparsity
        0.5
    """
    model, listed = _arguments(model, confs)
    inner = unwrapped(model)
    manager = CompressionManager(model, listed, Ranks(process_group))
    _give_up_earlier_run(inner)
    _LATEST[inner] = weakref.ref(manager)
    return manager


_LATEST: weakref.WeakKeyDictionary[nn.Module, weakref.ref[CompressionManager]] = weakref.WeakKeyDictionary()
"""The last manager of each model, to end a run that was interrupted and left behind."""


def _give_up_earlier_run(model: nn.Module) -> None:
    reference = _LATEST.get(model)
    earlier = None if reference is None else reference()
    if earlier is not None and earlier.callbacks.is_training:
        earlier.callbacks.give_up()
        message = (
            f"An earlier compression of this {type(model).__name__} did not reach on_train_end; it is given up, so "
            "that no two managers change one model. To combine techniques, give all configs to one prepare_compression."
        )
        warn_user(message, LoopWarning)


def _arguments(model: object, confs: object) -> tuple[nn.Module, list[Any]]:
    if isinstance(confs, nn.Module) and not isinstance(model, nn.Module):
        message = "prepare_compression(model, confs) was called with its arguments swapped; they were put right."
        warn_user(message, IncTorchWarning)
        model, confs = confs, model
    if not isinstance(model, nn.Module):
        message = f"prepare_compression got a model of type {type(model).__name__}: expected a torch.nn.Module."
        raise ConfigTypeError(message)
    listed = list(confs) if isinstance(confs, list | tuple) else [confs]
    if not listed:
        message = "prepare_compression got an empty list: expected at least one config, such as WeightPruningConfig()."
        raise ConfigError(message)
    return model, listed


@final
class CompressionManager:
    """The hooks of one training run, its state, its report and its result.

    Every hook can be called on the manager or on its ``callbacks``. See `inc_torch.core.hooks` for the loop.

    Attributes:
        model: The user's own model object, in whatever wraps it.
        callbacks: Runs the hooks.
        configs: What was asked for, in the user's order.
        before: The model as it was before; None once the training has begun.
    """

    def __init__(
        self, model: nn.Module, configs: Sequence[TrainingConfig | Callback], ranks: Ranks | None = None
    ) -> None:
        self.model = model
        self.configs = tuple(configs)
        self._inner = unwrapped(model)
        self.before: Snapshot | None = Snapshot(self._inner)
        callbacks = Dispatcher(build_callbacks(self.configs, model), self._inner, ranks or Ranks())
        callbacks.prepare()
        self.adopt_callbacks(callbacks)
        self.register_hook("on_train_begin", self._begin)
        self.present()

    def adopt_callbacks(self, callbacks: Dispatcher) -> None:
        """Let the hooks of the manager be those of ``callbacks``, which are prepared."""
        self.callbacks = callbacks
        self.on_train_begin = callbacks.on_train_begin
        self.on_epoch_begin = callbacks.on_epoch_begin
        self.on_step_begin = callbacks.on_step_begin
        self.on_after_compute_loss = callbacks.on_after_compute_loss
        self.on_before_optimizer_step = callbacks.on_before_optimizer_step
        self.on_after_optimizer_step = callbacks.on_after_optimizer_step
        self.on_step_end = callbacks.on_step_end
        self.on_epoch_end = callbacks.on_epoch_end
        self.on_before_eval = callbacks.on_before_eval
        self.on_after_eval = callbacks.on_after_eval
        self.on_train_end = callbacks.on_train_end
        self.register_hook = callbacks.register_hook
        self.remove_hook = callbacks.remove_hook
        self.register_hook("on_train_end", self.present)

    def __repr__(self) -> str:
        return f"CompressionManager({type(self.model).__name__}, {self.callbacks.callbacks_list})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be copied or pickled: the model knows one manager, and so do torch's optimizers."""
        message = (
            "A CompressionManager cannot be copied or pickled: it belongs to one model in one training. Copy the model "
            "itself, or go on elsewhere with manager.state_dict() and load_state_dict of a new prepare_compression."
        )
        raise CopyError(message)

    def report(self) -> CompressionReport:
        """Measure, in the weights as they are now, what every module was asked for and has reached.

        Where the model is sharded (``fully_shard``), every rank has to call it.
        """
        findings: list[Finding] = []
        curves = [callback.sparsity_over_steps() for callback in self.callbacks.callbacks_list]
        # By stage, so that notes stand in one order whatever that of the configs.
        for callback in sorted(self.callbacks.callbacks_list, key=lambda callback: callback.stage):
            # Every callback counts its groups from 0.
            offset = 1 + max((finding.group for finding in findings if finding.group is not None), default=-1)
            findings += [
                finding if finding.group is None else replace(finding, group=finding.group + offset)
                for finding in callback.findings()
            ]
        return CompressionReport.measure(self._inner, findings, next((curve for curve in curves if curve), ()))

    def plan(self, steps: int | None = None) -> Plan:
        """Say what happens from which optimizer step to which, and what of it goes wrong together.

        Args:
            steps: Optimizer steps of the whole training, if you know: what it does not reach is noted then.

        Raises:
            ConfigError: ``steps`` is no number of steps.

        Example:
            >>> import torch
            >>> from inc_torch import QuantizationAwareTrainingConfig, WeightPruningConfig, prepare_compression
            >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> pruning = WeightPruningConfig(target_sparsity=0.5, end_step=400)
            >>> manager = prepare_compression(model, [pruning, QuantizationAwareTrainingConfig(start_step=600)])
            >>> print(manager.plan(1000))
            technique     phase          steps      0                                   1000
            ------------  -------------  ---------  ----------------------------------------
            pruning       4x1 to 50 %    0 - 400    #################
            pruning       masks locked   401 - end                  ########################
            quantization  int8 rounding  600 - end                          ################
        """
        if steps is not None and (type(steps) is not int or steps < 1):
            message = f"CompressionManager.plan got steps={steps!r}: expected a number of optimizer steps, 1 or more."
            raise ConfigError(message)
        # On first use: a loop does without.
        from inc_torch.callbacks._plan import plan_of

        return plan_of(self.callbacks.callbacks_list, steps)

    def metrics(self) -> dict[str, float]:
        """Numbers to log beside the loss: sparsity reached, distillation loss, share of fake-quantized modules."""
        return {name: value for callback in self.callbacks.callbacks_list for name, value in callback.metrics().items()}

    def has_reached_goal(self) -> bool:
        """Whether the model is compressed as far as it will be: before, no checkpoint is the best of the run."""
        return all(callback.has_reached_goal() for callback in self.callbacks.callbacks_list)

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the model to ``directory`` as safetensors and JSON; `inc_torch.load` reads it.

        For a directory that ``from_pretrained`` opens, use `save_for_huggingface_upstream`.
        """
        if not self.callbacks.has_ended:
            message = (
                "manager.save was called before on_train_end: the model is saved in float, masks may still change."
            )
            warn_user(message, InexactWarning)
        save(self._inner, directory, self.report())

    def export(self, path: str | PathLike[str], config: Torch2ONNXConfig) -> OnnxExport:
        """Write the model as ONNX, see `inc_torch.export.onnx.export_onnx`."""
        from inc_torch.export.onnx import export_onnx  # which needs packages that a training does not

        return export_onnx(self._inner, path, config)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on as if nothing had happened, beside model and optimizer.

        Tensors and plain values: ``torch.load(..., weights_only=True)`` reads it back. In a distributed run every
        rank has to call it and gets the same state, but for its own random generators; the state of one rank goes on
        in any number of processes.
        """
        return {
            "format": FORMAT,
            "configs": [self._described(config) for config in self.configs],
            **self.callbacks.state_dict(),
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, restore_random: bool | None = None) -> None:
        """Go on from `state_dict`, before ``on_train_begin``; load the model's and optimizer's states as well.

        Args:
            state: What `state_dict` returned, of a run with equal configs.
            restore_random: Also set the random number generators of torch, numpy and Python. By default where one
                process trains: several would all get those of the rank that saved, and drop out the same values.

        Raises:
            StateError: It is of another format, or of a run with other configs; what differs is named.
        """
        if state.get("format") != FORMAT:
            message = f"This is no training state of inc_torch: format={state.get('format')!r}, expected {FORMAT!r}."
            raise StateError(message)
        check_keys("CompressionManager", state, {"format", "configs", "progress", "unfinished", "callbacks", "random"})
        _compare_configs(state["configs"], [self._described(config) for config in self.configs])
        self.callbacks.load_state_dict(state)
        if self.callbacks.progress.ranks.count == 1 if restore_random is None else restore_random:
            set_random_state(state["random"])

    def _begin(self, *_: object) -> None:
        """Let go of what the model was, and say what only a search would follow."""
        self.before = None
        for config in self.configs:
            if isinstance(config, QuantizationAwareTrainingConfig) and (idle := config.options_of_search()):
                message = (
                    f"{', '.join(idle)} of QuantizationAwareTrainingConfig guide a search, and a training loop "
                    "searches for nothing: use inc_torch.training.fit, or leave them out."
                )
                warn_user(message, InexactWarning)

    def present(self, *_: object) -> None:
        """Give the model its methods, and the report of what it is now."""
        adorn(self._inner)
        attach_report(self._inner, self.report())

    @staticmethod
    def _described(config: TrainingConfig | Callback) -> dict[str, Any]:
        return {"type": type(config).__name__} if isinstance(config, Callback) else config.to_dict()


def _compare_configs(saved: Sequence[Mapping[str, Any]], current: Sequence[Mapping[str, Any]]) -> None:
    differences = [
        f"config {index}: {key}: saved {before.get(key)!r}, now {now.get(key)!r}"
        for index, (saved_config, current_config) in enumerate(zip(saved, current, strict=False))
        for before, now in [(_flat(saved_config), _flat(current_config))]
        for key in (sorted(before.keys() | now.keys()) if before["type"] == now["type"] else ["type"])
        if before.get(key) != now.get(key)
    ]
    if len(saved) != len(current):
        differences.append(f"{len(saved)} configs were saved, there are {len(current)} now")
    if differences:
        message = "The saved state is of a run with other configs. " + "; ".join(differences) + "."
        raise StateError(message)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": config["type"], **config.get("data", {})}
