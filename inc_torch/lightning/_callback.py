"""The techniques as one callback of Lightning's Trainer. Imported on first use, as it subclasses one of theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from torch import nn
from torch.optim import Optimizer

from inc_torch.callbacks import Callback, DistillationCallbacks, TrainingConfig, require_teachers
from inc_torch.config import read_configs
from inc_torch.core.errors import ConfigError, StateError
from inc_torch.core.names import unwrapped
from inc_torch.core.state import check_keys
from inc_torch.lightning._best import Rivals
from inc_torch.lightning._framework import check_strategy, framework
from inc_torch.lightning._loss import LossSeam
from inc_torch.lightning._steps import StepSeam
from inc_torch.training import CompressionManager, prepare_compression

if TYPE_CHECKING:
    from lightning.pytorch import Callback as LightningCallback
    from lightning.pytorch import LightningModule, Trainer
else:
    LightningCallback = framework().Callback
    LightningModule = framework().LightningModule

__all__ = ["INCLightningCallback"]


@final
class INCLightningCallback(LightningCallback):
    """Prunes, quantizes and distils the model that a Lightning Trainer trains.

    Lightning's events become the hooks of a `CompressionManager`:

    ================================ =================================================================
    Lightning                        manager
    ================================ =================================================================
    ``setup("fit")``                 ``prepare_compression``; at ``on_fit_start``, or before a
                                     checkpoint is loaded, where the LightningModule has a ``setup`` or
                                     ``configure_model`` of its own, as its layers may be made there
    ``load_state_dict``              ``load_state_dict``
    ``on_train_start``               ``on_train_begin``
    ``on_train_epoch_start``, end    ``on_epoch_begin``, ``on_epoch_end``
    ``on_train_batch_start``         ``on_step_begin``, once an optimizer step
    ``training_step`` returns, or    ``on_after_compute_loss``
    ``manual_backward`` is called
    ``optimizer.step``               ``on_before_optimizer_step``, with gradients unscaled and clipped;
                                     then ``on_after_optimizer_step`` and ``on_step_end``
    ``on_train_batch_end``           ``metrics``, logged as often as Lightning logs
    ``on_validation_start``, end     ``on_before_eval``, ``on_after_eval``; not in the sanity check
    ``state_dict``                   ``state_dict``, in each checkpoint that has more than weights
    ``on_train_end``                 ``on_train_end``
    ================================ =================================================================

    A step is an update of the weights that are pruned, or without pruning of the compressed module. Several optimizers
    make it together; it ends when each has stepped, at the end of the batch, or when one of them steps again.

    Distillation compares the output of the compressed module's last forward in ``training_step`` with what the teacher
    makes of the same inputs. These, a tuple or, if something was named, a dict, are the ``input`` of
    ``on_after_compute_loss``; not the batch, which may have been augmented since. Under manual optimization each loss
    is distilled that is given to ``manual_backward`` after a forward of the compressed module with gradients.

    ``trainer.fit(ckpt_path=...)`` goes on bit for bit where Lightning itself does: from the end of an epoch, or with a
    data loader that keeps its state.

    A checkpoint counts as the best of a ``ModelCheckpoint(monitor=...)`` only if the target sparsity was reached; until
    then the newest ones are kept. ``EarlyStopping`` counts all evaluations: give it ``patience`` until pruning ends.

    After training the LightningModule is the compressed one: ``trainer.test(module)`` is about it. Checkpoints are
    of the model before its conversion to int8, so after quantization-aware training
    ``trainer.test(ckpt_path="best")`` does not fit it. To finish another checkpoint than the last::

        checkpoint = torch.load(path, weights_only=True)
        manager = prepare_compression(module, conf)  # a fresh module; with submodule="net": module.net
        module.load_state_dict(checkpoint["state_dict"])
        manager.load_state_dict(checkpoint["callbacks"]["INCLightningCallback"]["manager"])
        manager.on_train_begin()
        manager.on_train_end()

    Args:
        conf: A config, a `Callback`, a dict, the path of a YAML file, or a list of these (see
            `inc_torch.config.read_configs`); or the manager that ``prepare_compression`` returned for the module.
        teacher_model: The teacher for the `DistillationConfig` in ``conf`` that has none, as one from a file.
        submodule: The part of the LightningModule that is compressed, by its dotted name, such as ``"net"`` where it
            has ``self.net``. Names in configs and reports begin there. By default it is the LightningModule whole.

    Attributes:
        manager: The hooks, state and report of the run; None until the Trainer begins.

    Raises:
        ConfigError: ``conf`` is wrong, or distillation has no teacher.
        ModelError: The Trainer trains in a way that hides the weights (FSDP1, DeepSpeed).

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from inc_torch import INCLightningCallback, WeightPruningConfig
        >>> class Regression(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        ...     def training_step(self, batch):
        ...         return self.net(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> conf = WeightPruningConfig(target_sparsity=0.5, pattern="4x1", end_step=3)
        >>> callback = INCLightningCallback(conf, submodule="net")
        >>> trainer = Trainer(max_epochs=1, accelerator="cpu", barebones=True, callbacks=[callback])
        >>> trainer.fit(Regression(), torch.utils.data.DataLoader(torch.ones(16, 8), batch_size=4))
        >>> callback.manager.report().sparsity
        0.5
    """

    def __init__(
        self,
        conf: TrainingConfig
        | Callback
        | CompressionManager
        | Mapping[str, Any]
        | str
        | os.PathLike[str]
        | Sequence[Any],
        *,
        teacher_model: nn.Module | None = None,
        submodule: str | None = None,
    ) -> None:
        self.manager: CompressionManager | None = None
        self._configs: list[Any] = []
        self._submodule = submodule
        if isinstance(conf, CompressionManager):
            self._adopt(conf)
        else:
            self._configs = read_configs(conf, teacher_model)
        self._is_fitting = False
        self._rivals = Rivals()
        self._steps: StepSeam | None = None
        self._loss: LossSeam | None = None
        self._trainer: Any = None
        self._is_step_open = False
        self._has_stepped = False
        self._stepped: list[Optimizer] = []

    # ------------------------------------------------------------------ before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._is_fitting = stage == "fit"
        if self._is_fitting:
            check_strategy(trainer)
            if not _is_built_later(pl_module):
                self._prepare(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._is_fitting:
            return
        if self.state_key not in checkpoint["callbacks"]:
            message = (
                "fit(ckpt_path=...) was given a checkpoint that was written without INCLightningCallback: masks and "
                "ranges of that step are not in it. To compress a model that was trained before, load its weights "
                f"({type(pl_module).__name__}.load_from_checkpoint) and call fit without ckpt_path."
            )
            raise StateError(message)
        self._prepare(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        manager = self._running
        for callback in manager.callbacks.callbacks_list:
            if isinstance(callback, DistillationCallbacks):
                callback.place_teachers(pl_module.device)
        manager.on_train_begin(trainer.train_dataloader)
        self._trainer = trainer
        self._steps = StepSeam(trainer.optimizers, self._before_step, self._after_step)
        self._steps.install()
        if manager.callbacks.listens_to("on_after_compute_loss"):
            self._loss = LossSeam(pl_module, manager)
            self._loss.install()

    # ------------------------------------------------------------------ the loop

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._running.on_epoch_begin(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._has_stepped = False
        if self._loss is not None:
            self._loss.begin_batch()
        self._begin_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._stepped:
            self._finish_step()
        if self._has_stepped:
            every = self._trainer.log_every_n_steps
            if every and (trainer.global_step % every == 0 or trainer.is_last_batch):
                pl_module.log_dict(dict(self._running.metrics()))
        # Before a ModelCheckpoint has its say, as Lightning calls these after all other callbacks.
        self._rivals.update(trainer, has_reached_goal=self._running.has_reached_goal())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._running.on_epoch_end()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_training:
            self._running.on_before_eval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_training:
            self._running.on_after_eval()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_seams()
        self._running.on_train_end()
        self._rivals.warn_of_early_best(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_seams()

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The manager's state, and whether the goal was reached; tensors and plain values."""
        if self.manager is None:
            return {}
        return {"manager": self.manager.state_dict(), "has_reached_goal": self._rivals.is_over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`; where no training begins (``trainer.test(ckpt_path=...)``), do nothing.

        Raises:
            StateError: It is of a run with other configs; what differs is named.
        """
        if self._is_fitting:
            check_keys(type(self).__name__, state_dict, {"manager", "has_reached_goal"})
            self._running.load_state_dict(state_dict["manager"])
            self._rivals.is_over = state_dict["has_reached_goal"]

    # ------------------------------------------------------------------ helpers

    @property
    def _running(self) -> CompressionManager:
        if self.manager is None:
            message = (
                "This INCLightningCallback has no model yet. Give it to Trainer(callbacks=[callback]) and call fit."
            )
            raise ConfigError(message)
        return self.manager

    @property
    def _is_training(self) -> bool:
        """Not in the sanity check, nor in ``trainer.validate``."""
        return self.manager is not None and self.manager.callbacks.is_training

    def _prepare(self, pl_module: LightningModule) -> None:
        """Make the manager of the module that is compressed; one that it has stays."""
        target = self._target(pl_module)
        if self.manager is not None and unwrapped(self.manager.model) is unwrapped(target):
            return
        if not self._configs:
            message = (
                f"INCLightningCallback was given a manager of another model than the {type(target).__name__} that is "
                "trained. Call prepare_compression on it, or give INCLightningCallback the configs."
            )
            raise ConfigError(message)
        self._adopt(prepare_compression(target, self._configs))

    def _target(self, pl_module: LightningModule) -> nn.Module:
        whole: nn.Module = pl_module
        if self._submodule is None:
            return whole
        try:
            return whole.get_submodule(self._submodule)
        except AttributeError as error:
            known = ", ".join(repr(name) for name, _ in whole.named_children())
            message = (
                f"INCLightningCallback(submodule={self._submodule!r}): {type(whole).__name__} has no such module. "
                f"Its parts are {known}; parts of those are named with dots."
            )
            raise ConfigError(message) from error

    def _adopt(self, manager: CompressionManager) -> None:
        require_teachers(manager.callbacks.callbacks_list, "INCLightningCallback(conf, teacher_model=teacher)")
        self.manager = manager

    def _begin_step(self) -> None:
        if not self._is_step_open:
            self._is_step_open = True
            self._running.on_step_begin(self._running.callbacks.progress.step)

    def _before_step(self, optimizer: Optimizer) -> None:
        if optimizer not in self._ours():
            return
        if optimizer in self._stepped:
            self._finish_step()
        if not self._stepped:
            if self._loss is not None:
                self._loss.require_use()
            self._begin_step()
            self._running.on_before_optimizer_step()

    def _after_step(self, optimizer: Optimizer) -> None:
        ours = self._ours()
        if optimizer in ours:
            self._stepped.append(optimizer)
            if len(self._stepped) == len(ours):
                self._finish_step()

    def _finish_step(self) -> None:
        self._stepped.clear()
        self._is_step_open = False
        self._has_stepped = True
        self._running.on_after_optimizer_step()
        self._running.on_step_end()

    def _ours(self) -> list[Optimizer]:
        """The optimizers whose steps count: those that hold pruned weights, or else any of the compressed module."""
        manager = self._running
        tracked = [weight for callback in manager.callbacks.callbacks_list for weight in callback.tracked_parameters()]
        ours = {id(weight) for weight in tracked or manager.model.parameters()}
        return [
            optimizer
            for optimizer in self._trainer.optimizers
            if any(id(weight) in ours for group in optimizer.param_groups for weight in group["params"])
        ]

    def _remove_seams(self) -> None:
        for seam in (self._steps, self._loss):
            if seam is not None:
                seam.remove()
        self._steps = self._loss = None
        self._stepped.clear()
        self._is_step_open = False


def _is_built_later(pl_module: LightningModule) -> bool:
    """Whether layers may still be made, in a method that Lightning calls after `INCLightningCallback.setup`."""
    return any(
        getattr(type(pl_module), name) is not getattr(LightningModule, name) for name in ("setup", "configure_model")
    )
