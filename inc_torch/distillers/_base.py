"""The interface of a distillation loss, and its registry."""

from __future__ import annotations

from typing import Protocol

import torch

from inc_torch.core.registry import Registry

__all__ = ["LOSSES", "DistillationLoss"]


class DistillationLoss(Protocol):
    """How far the student is from the teacher, and how that joins the loss of the user's loop."""

    @property
    def has_distance(self) -> bool:
        """Whether `distance` counts at all; where it does not, it is not computed, and no teacher is run."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Whether `distance` needs what a teacher says of the batch."""
        ...

    def distance(
        self, student_output: object, teacher_output: object, padding_mask: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Return the distance of the outputs, 0-d, float32 or wider; None if this output has none.

        No gradient reaches the teacher's output.

        Args:
            student_output: What the student's forward returned.
            teacher_output: What the teacher's forward returned for the same input; None where none is needed.
            padding_mask: ``[batch, position]``, nonzero at real tokens; a loss may leave it unused.
        """
        ...

    def mix(self, student_loss: torch.Tensor | float, distance: torch.Tensor | None) -> torch.Tensor:
        """Return the loss to call ``backward`` on, 0-d; ``distance`` is None where there is none."""
        ...


LOSSES: Registry[type[DistillationLoss]] = Registry("distillation loss", "inc_torch.distillers.losses")
