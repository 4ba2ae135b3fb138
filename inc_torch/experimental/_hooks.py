"""The hooks of 1.X objects, under their names of all times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from inc_torch.core.dispatcher import Dispatcher
from inc_torch.core.errors import HookOrderError

__all__ = ["Hooks"]


class Hooks(ABC):
    """Methods that hand on to the hooks of the run that there is."""

    @abstractmethod
    def _callbacks(self) -> Dispatcher | None:
        """What runs the hooks; None where there is nothing to do in them."""

    def on_train_begin(self, dataloader: object = None) -> None:
        """Begin the training; that `fit` has done so already is no error."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_train_begin(dataloader)

    def on_epoch_begin(self, epoch: int) -> None:
        """Begin an epoch: where a file counts in epochs, masks change now."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_epoch_begin(epoch)

    def on_step_begin(self, batch_id: int = 0) -> None:
        """Called before the forward of a batch."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_step_begin(batch_id)

    def on_after_compute_loss(
        self,
        input: object,  # noqa: A002  INC's argument name, used as a keyword in scripts
        student_output: object,
        student_loss: torch.Tensor | float,
        teacher_output: object = None,
    ) -> torch.Tensor | float:
        """Return the loss to call ``backward`` on; without distillation it is ``student_loss``."""
        if (callbacks := self._callbacks()) is None:
            return student_loss
        return callbacks.on_after_compute_loss(input, student_output, student_loss, teacher_output)

    def on_before_optimizer_step(self) -> None:
        """Called between ``backward`` and the step of the optimizer."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_before_optimizer_step()

    def on_after_optimizer_step(self) -> None:
        """Called after the step of the optimizer."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_after_optimizer_step()

    def on_step_end(self) -> None:
        """Called at the end of a batch."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_step_end()

    def on_epoch_end(self) -> None:
        """End an epoch."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_epoch_end()

    def on_train_end(self) -> None:
        """End the training: masks are final, and what is to become int8 becomes it."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_train_end()

    def on_before_eval(self) -> None:
        """Called before an evaluation within the training."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_before_eval()

    def on_after_eval(self) -> None:
        """Called after it."""
        if (callbacks := self._callbacks()) is not None:
            callbacks.on_after_eval()

    pre_epoch_begin = on_train_begin
    post_epoch_end = on_train_end
    on_batch_begin = on_step_begin
    on_batch_end = on_step_end
    on_post_grad = on_before_optimizer_step

    def on_post_forward(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Gone since INC 1.12."""
        message = (
            f"{type(self).__name__}.on_post_forward is no more: call loss = on_after_compute_loss(input, "
            "student_output, student_loss) after the loss, and loss.backward()."
        )
        raise HookOrderError(message)
