"""The base of a distillation loss, and the registry of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from inc_torch.core.registry import Registry
from inc_torch.core.state import check_keys
from inc_torch.distillers._functional import single

__all__ = ["LOSSES", "DistillationLoss", "Output"]

Output = Any
"""What a forward returned, in whatever form, or a dict of what layers returned."""


class DistillationLoss(ABC):
    """How far the student is from the teacher, and how that joins the loss of the user's loop.

    `distance` is all that a loss of your own needs; give an object of it to `DistillationConfig` as ``criterion``.

    Example:
        >>> class Confidence(DistillationLoss):
        ...     def distance(self, student_output, teacher_output, padding_mask=None):
        ...         return (student_output.softmax(-1).amax(-1) - teacher_output.softmax(-1).amax(-1)).abs().mean()
        >>> loss = Confidence()
        >>> loss.mix(torch.tensor(1.0), loss.distance(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]])))
        tensor(1.5000)
    """

    __slots__ = ()

    @property
    def has_distance(self) -> bool:
        """Whether `distance` counts at all; where it does not, it is not computed, and no teacher is run."""
        return True

    @property
    def needs_teacher(self) -> bool:
        """Whether `distance` needs what a teacher says of the batch."""
        return self.has_distance

    @property
    def student_layers(self) -> tuple[str, ...]:
        """Modules of the student whose outputs are compared, ``""`` for the model itself; none for its output alone."""
        return ()

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The same of the teacher."""
        return ()

    @abstractmethod
    def distance(
        self,
        student_output: Output,
        teacher_output: Output,
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Return the distance of the outputs, 0-d, float32 or wider; None if this output has none.

        No gradient reaches the teacher's output.

        Args:
            student_output: What the student's forward returned; with `student_layers` a dict of what each of them
                returned.
            teacher_output: What the teacher's forward returned for the same input, or with `teacher_layers` a dict;
                None where no teacher is needed.
            padding_mask: ``[batch, position]``, nonzero at real tokens; a loss may leave it unused.
        """

    def mix(self, student_loss: torch.Tensor | float, distance: torch.Tensor | None) -> torch.Tensor:
        """Return the loss to call ``backward`` on, 0-d; ``distance`` is None where there is none."""
        loss = single(student_loss)
        return loss if distance is None else loss.to(distance.device) + distance

    @property
    def learning_rate(self) -> float:
        """Of what the loss itself trains."""
        return 1e-3

    def trained_parameters(self) -> tuple[nn.Parameter, ...]:
        """What the loss itself trains, such as projections; never part of the model."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state_dict` makes `trained_parameters` as they were."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        check_keys(type(self).__name__, state, set())


LOSSES: Registry[type[DistillationLoss]] = Registry("distillation loss", "inc_torch.distillers.losses")
