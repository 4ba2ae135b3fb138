"""Where the Trainer's loss passes through the manager."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.distillers import TEACHER_LOGITS
from inc_torch.huggingface._fused_head import IGNORED, FusedHead
from inc_torch.training import CompressionManager

__all__ = ["LossSeam"]


@final
class LossSeam:
    """Stands in for ``trainer.compute_loss`` and hands the loss on to ``manager.on_after_compute_loss``.

    ``compute_loss`` is where transformers lets users bring their own loss, so whatever makes the loss (the model,
    ``compute_loss_func``, label smoothing, a subclass) is behind it, and what it returns is what ``backward`` gets.
    Evaluations pass unchanged.

    A loss that counts all items of an accumulated batch, ``sum / num_items_in_batch``, is handed on as the mean over
    its own micro-batch, and the result is scaled back: the distance to the teacher weighs what the loss weighs,
    however the batch is cut. Many models accept ``num_items_in_batch`` and ignore it; which kind it is, is tried
    once, with two forwards of the first batch.

    Args:
        trainer: The Trainer.
        manager: Whose hook it is.
    """

    def __init__(self, trainer: Any, manager: CompressionManager) -> None:  # noqa: ANN401  the Trainer's interface
        self._trainer = trainer
        self._manager = manager
        self._compute_loss = trainer.compute_loss
        self._fused_head = FusedHead.of(trainer)
        self._counts_items = None if self._fused_head is None else True
        self._is_used = False

    def install(self) -> None:
        """Take the place of the Trainer's ``compute_loss``."""
        installed = self._trainer.__dict__.get("compute_loss")
        if isinstance(installed, LossSeam):
            self._compute_loss = installed._compute_loss
        self._trainer.compute_loss = self

    def remove(self) -> None:
        """Give the Trainer its own back."""
        if self._trainer.__dict__.get("compute_loss") is self:
            del self._trainer.compute_loss

    def require_use(self) -> None:
        """Make sure that the loss came by since the last optimizer step.

        Raises:
            ConfigError: It did not, so distillation had no part in the gradients.
        """
        if not self._is_used:
            message = (
                f"{type(self._trainer).__name__} made an optimizer step without calling its compute_loss in training, "
                "so distillation had no part in the loss. Call self.compute_loss in your training_step, or fold the "
                "loss yourself: loss = callback.manager.on_after_compute_loss(inputs, outputs, loss)."
            )
            raise ConfigError(message)
        self._is_used = False

    def __call__(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **options: object,
    ) -> object:
        """Compute the loss, with the manager's say in it if the model trains."""
        counted = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        teacher_logits = inputs.pop(TEACHER_LOGITS, None)  # which no model takes
        if not (model.training and self._manager.callbacks.is_training):
            return self._compute_loss(model, inputs, return_outputs=return_outputs, **counted, **options)
        share = self._share_of_items(model, inputs, num_items_in_batch)
        batch = dict(inputs)  # compute_loss takes the labels out of its own
        loss, outputs = self._loss_and_outputs(model, inputs, counted | options)
        with self._trainer.accelerator.autocast():
            loss = self._manager.on_after_compute_loss(batch, outputs, loss / share, teacher_logits) * share
        self._is_used = True
        return (loss, outputs) if return_outputs else loss

    def _loss_and_outputs(
        self, model: nn.Module, inputs: dict[str, Any], options: Mapping[str, object]
    ) -> tuple[torch.Tensor, object]:
        if self._fused_head is not None:
            return self._compute_loss(model, inputs, **options), self._fused_head.last_output
        result = self._compute_loss(model, inputs, return_outputs=True, **options)
        if not (isinstance(result, tuple) and len(result) == 2):  # noqa: PLR2004  loss and outputs
            message = (
                f"{type(self._trainer).__name__}.compute_loss returned {type(result).__name__} for "
                "return_outputs=True: expected (loss, outputs). Distillation compares the outputs with the teacher's."
            )
            raise ModelError(message)
        return result

    def _share_of_items(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items: torch.Tensor | int | None
    ) -> torch.Tensor | float:
        """What the loss is to the mean over its micro-batch: 1, or the share of the items that are in it."""
        arguments, processes = self._trainer.args, self._trainer.accelerator.num_processes
        is_whole = processes == 1 and arguments.gradient_accumulation_steps == 1
        if num_items is None or is_whole or not self._counts_items_of(model, inputs, num_items):
            return 1.0
        items = _items(inputs, is_shifted=getattr(self._trainer, "_loss_shifts_labels", False))
        scale = processes if arguments.average_tokens_across_devices else 1
        least = torch.finfo(torch.float32).tiny  # a micro-batch without a label has no share, and no loss
        share: torch.Tensor = (items * scale / num_items).to(torch.float32)
        return share.clamp_min(least)

    def _counts_items_of(self, model: nn.Module, inputs: Mapping[str, Any], num_items: torch.Tensor | int) -> bool:
        """Whether the loss halves when there are twice as many items; tried until some rank has a loss that tells."""
        if self._counts_items is None:
            once, twice = (self._tried(model, inputs, num_items * factor) for factor in (1, 2))
            halves = torch.isclose(twice * 2, once, rtol=1e-2) & (once != 0)
            stays = torch.isclose(twice, once, rtol=1e-2) & (once != 0)
            ranks = self._manager.callbacks.progress.ranks
            votes = ranks.maximum_(torch.stack([halves, stays]).to(torch.int32)).tolist()
            self._counts_items = bool(votes[0]) if any(votes) else None
        return bool(self._counts_items)

    @torch.no_grad()
    def _tried(self, model: nn.Module, inputs: Mapping[str, Any], num_items: torch.Tensor | int) -> torch.Tensor:
        """The loss in evaluation mode, so that nothing is observed and no random number drawn."""
        model.eval()
        try:
            loss: torch.Tensor = self._compute_loss(model, dict(inputs), num_items_in_batch=num_items)
        finally:
            model.train()
        return loss.detach().float()


def _items(inputs: Mapping[str, Any], *, is_shifted: bool) -> torch.Tensor:
    """How many items of the batch the Trainer counts."""
    if "shift_labels" in inputs:
        labels = inputs["shift_labels"]
    else:
        labels = inputs["labels"][..., 1:] if is_shifted else inputs["labels"]
    count: torch.Tensor = labels.ne(IGNORED).sum()
    return count
