"""The techniques as one callback of transformers' Trainer. Imported on first use, as it subclasses one of theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inc_torch.callbacks import (
    Callback,
    DistillationCallbacks,
    QuantizationAwareTrainingCallbacks,
    TrainingConfig,
    require_teachers,
)
from inc_torch.config import read_configs
from inc_torch.core.errors import ConfigError, HookOrderError, InexactWarning
from inc_torch.core.names import unwrapped
from inc_torch.core.user_warning import warn_user
from inc_torch.distillers import TEACHER_LOGITS
from inc_torch.huggingface._checkpoint import checkpoint_to_resume, read_state, write_state, written_checkpoint
from inc_torch.huggingface._fused_head import FusedHead
from inc_torch.huggingface._loss import LossSeam
from inc_torch.huggingface._renamed_weights import load_renamed_weights
from inc_torch.huggingface._trainer import calling_trainer, check_layout
from inc_torch.training import CompressionManager, prepare_compression

__all__ = ["INCCallback"]

_NEED_LOGITS = (DistillationCallbacks, QuantizationAwareTrainingCallbacks)
"""What an output layer that is computed past its module would leave out."""


@final
class INCCallback(TrainerCallback):
    """Prunes, quantizes and distils the model that a Trainer trains.

    The Trainer's events become the hooks of a `CompressionManager`:

    ========================== =========================================================
    Trainer                    manager
    ========================== =========================================================
    ``on_init_end``            ``prepare_compression``
    ``on_train_begin``         ``load_state_dict`` if resuming, then ``on_train_begin``
    ``on_epoch_begin``, end    the same names
    ``on_step_begin``          ``on_step_begin``, once an optimizer step
    ``compute_loss``           ``on_after_compute_loss``, while training
    ``on_pre_optimizer_step``  ``on_before_optimizer_step``
    ``on_optimizer_step``      ``on_after_optimizer_step``
    ``on_step_end``            ``on_step_end``
    before an evaluation       ``on_before_eval``
    ``on_evaluate``            ``on_after_eval``
    ``on_log``                 ``metrics``, logged beside the loss
    ``on_save``                ``state_dict``, as ``inc_torch_state.pt`` in the checkpoint
    ``on_train_end``           ``on_train_end``
    ========================== =========================================================

    Training goes on from a checkpoint bit for bit. A checkpoint counts for ``load_best_model_at_end`` only from the
    moment on that the target sparsity is reached. After training the Trainer's model is the compressed one:
    ``evaluate``, ``save_model`` and ``push_to_hub`` are about it.

    Args:
        conf: A config, a `Callback`, a dict, the path of a YAML file, or a list of these (see
            `inc_torch.config.read_configs`); or the manager that ``prepare_compression`` returned for the model.
        teacher_model: The teacher for the `DistillationConfig` in ``conf`` that has none, as one from a file.

    Attributes:
        manager: The hooks, state and report of the run; None until the Trainer is made.

    Raises:
        ConfigError: ``conf`` is wrong, or distillation has no teacher.
        ModelError: The Trainer trains in a way that hides the weights (DataParallel, DeepSpeed, FSDP1).

    Example:
        >>> from inc_torch import INCCallback, WeightPruningConfig
        >>> callback = INCCallback(WeightPruningConfig(target_sparsity=0.8, pattern="4x1", end_step=1000))
        >>> # Trainer(model=model, args=args, train_dataset=data, callbacks=[callback]).train()
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
    ) -> None:
        self.manager: CompressionManager | None = None
        self._configs: list[Any] = []
        self._trainer: Any = None
        self._seam: LossSeam | None = None
        self._reached_at: int | None = None
        self._untrained: dict[str, Any] = {}
        if isinstance(conf, CompressionManager):
            self._adopt(conf)
        else:
            self._configs = read_configs(conf, teacher_model)

    def attach(self, trainer: Any) -> INCCallback:
        """Name the Trainer. Only needed where this callback's events are passed on by something between."""
        self._trainer = trainer
        return self

    # ------------------------------------------------------------------ before training

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer = self._trainer or calling_trainer(self)
        check_layout(args, self._trainer)
        manager = self._prepare(kwargs["model"])
        if args.remove_unused_columns and TEACHER_LOGITS not in (args.label_names or ()):
            way_out = (
                "INCCallback(conf, teacher_model=teacher), or let the data set bring a column of its logits, "
                f"{TEACHER_LOGITS!r}, and keep that: TrainingArguments(remove_unused_columns=False)"
            )
            require_teachers(manager.callbacks.callbacks_list, way_out)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer = self._trainer or calling_trainer(self)
        check_layout(args, self._trainer)
        manager = self._prepare(kwargs["model"])
        if manager.callbacks.has_ended:
            message = (
                "The Trainer was asked to train a model whose compression has ended. Make a new Trainer with a new "
                "INCCallback; an int8 model cannot be trained any more, load a float checkpoint of it."
            )
            raise HookOrderError(message)
        if state.global_step:
            self._resume(checkpoint_to_resume(args, state, self._trainer))
        elif manager.callbacks.progress.step:  # a second attempt, such as with auto_find_batch_size
            manager.load_state_dict(self._untrained, restore_random=False)
            self._reached_at = None
        self._place_teachers(args)
        if any(isinstance(callback, _NEED_LOGITS) for callback in manager.callbacks.callbacks_list):
            FusedHead.of(self._trainer)
        manager.on_train_begin(kwargs.get("train_dataloader"))
        self._install_seam(manager)
        if args.eval_on_start:
            manager.on_before_eval()

    # ------------------------------------------------------------------ the loop

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._running.on_epoch_begin(int(state.epoch or 0))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forget_unfinished_best(state)
        self._running.on_step_begin(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._seam is not None:
            self._seam.require_use()
        self._running.on_before_optimizer_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._running.on_after_optimizer_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._running.on_step_end()
        if self._reached_at is None and self._running.has_reached_goal():
            self._reached_at = state.global_step
        if control.should_evaluate:
            self._running.on_before_eval()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._running.on_epoch_end()
        if control.should_evaluate:
            self._running.on_before_eval()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Before the Trainer compares this evaluation with the best one.
        self._forget_unfinished_best(state)
        self._running.on_after_eval()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metrics = self._running.metrics()
        if metrics and self._trainer is not None and "loss" in kwargs["logs"]:
            self._trainer.log(metrics)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._forget_unfinished_best(state)
        # Of all ranks, as a sharded model is gathered for it.
        content = {"manager": self._running.state_dict(), "reached_at": self._reached_at}
        if args.should_save:
            write_state(written_checkpoint(args, state), content)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.load_best_model_at_end:
            self._follow_best(state)
        self._running.on_train_end()
        if self._seam is not None:
            self._seam.remove()
        self._hand_over(unwrapped(kwargs["model"]))

    # ------------------------------------------------------------------ helpers

    @property
    def _running(self) -> CompressionManager:
        if self.manager is None:
            message = "This INCCallback has no model yet. Give it to a Trainer: Trainer(..., callbacks=[callback])."
            raise ConfigError(message)
        return self.manager

    def _hand_over(self, model: nn.Module) -> None:
        """Make an int8 model the one that is saved, evaluated and loaded again: nothing of the training is left on it.

        Mixed precision stays around a forward after training, and int8 codes are those of float inputs.
        """
        # Imported here: after transformers' own quantizers, which import ours.
        from inc_torch.huggingface._quantizer import adopt

        if not hasattr(model, "config"):
            return
        adopt(model)  # from now on save_pretrained, which save_model calls, writes what from_pretrained opens
        if getattr(model, "is_quantized", False) and self._trainer is not None:
            self._trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    def _prepare(self, model: nn.Module) -> CompressionManager:
        """The manager of ``model``; a Trainer with ``model_init`` brings a new one for each trial."""
        if self.manager is None or unwrapped(self.manager.model) is not unwrapped(model):
            if not self._configs:
                message = (
                    "INCCallback was given a manager of another model than the Trainer's. Call "
                    "prepare_compression on the Trainer's model, or give INCCallback the configs."
                )
                raise ConfigError(message)
            self._adopt(prepare_compression(model, self._configs))
        return self._running

    def _adopt(self, manager: CompressionManager) -> None:
        self.manager = manager
        self._untrained = manager.state_dict()
        self._reached_at = None
        self._seam = None

    def _resume(self, checkpoint: str | os.PathLike[str]) -> None:
        content = read_state(checkpoint)
        load_renamed_weights(checkpoint, unwrapped(self._running.model))
        self._running.load_state_dict(content["manager"], restore_random=False)  # the Trainer restores each rank's own
        self._reached_at = content["reached_at"]

    def _place_teachers(self, args: TrainingArguments) -> None:
        for callback in self._running.callbacks.callbacks_list:
            if isinstance(callback, DistillationCallbacks):
                callback.place_teachers(args.device)

    def _install_seam(self, manager: CompressionManager) -> None:
        if not manager.callbacks.listens_to("on_after_compute_loss"):
            return
        if self._trainer is None:
            message = (
                "INCCallback cannot find the Trainer that trains, so distillation cannot join its loss. Name it "
                "before training: callback.attach(trainer)."
            )
            raise ConfigError(message)
        self._seam = LossSeam(self._trainer, manager)
        self._seam.install()

    def _forget_unfinished_best(self, state: TrainerState) -> None:
        """A model that is not yet compressed as asked is no rival of one that is, however good."""
        if self._reached_at is None or (state.best_global_step or 0) < self._reached_at:
            state.best_metric = state.best_model_checkpoint = None
            state.best_global_step = None

    def _follow_best(self, state: TrainerState) -> None:
        """The Trainer has loaded the weights of the best checkpoint; take its masks and ranges too."""
        if state.best_model_checkpoint is not None:
            self._resume(state.best_model_checkpoint)
        else:
            message = (
                "load_best_model_at_end found no evaluated checkpoint with the final sparsity, so the model is the one "
                "of the last step. Let the pruning end (end_step) before the last evaluation and save."
            )
            warn_user(message, InexactWarning)
