"""Bringing a student's features to the size that the teacher's have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.core.errors import ModelError
from inc_torch.core.state import check_keys

__all__ = ["Projection"]


@final
@dataclass(slots=True)
class Projection:
    """A linear layer along one axis, which learns with the student and is not part of it.

    Attributes:
        axis: Of the features; for channels of images, axis 1, it is a 1x1 convolution.
        weight: ``[size of the teacher, size of the student]``, float32.
        bias: ``[size of the teacher]``.

    Example:
        >>> projection = Projection.between((2, 3, 8, 8), (2, 5, 8, 8), seed=0)
        >>> projection.axis, tuple(projection(torch.zeros(2, 3, 8, 8)).shape)
        (1, (2, 5, 8, 8))
    """

    axis: int
    weight: nn.Parameter
    bias: nn.Parameter

    @classmethod
    def between(cls, student: tuple[int, ...], teacher: tuple[int, ...], seed: int) -> Projection | None:
        """What makes features of the shape ``student`` features of the shape ``teacher``; None if they are alike.

        Weights are drawn as `torch.nn.Linear` draws them, from a generator of its own: alike in every process, and no
        other random number changes.

        Raises:
            ModelError: They differ in more than one axis, or in the first, which is the batch.
        """
        unlike = [axis for axis, sizes in enumerate(zip(student, teacher, strict=False)) if sizes[0] != sizes[1]]
        if len(student) == len(teacher) and not unlike:
            return None
        if len(student) != len(teacher) or len(unlike) != 1 or unlike == [0]:
            message = (
                f"Features of shape {student} cannot be compared with those of shape {teacher}: expected one shape, "
                "or one that differs in a single axis, and not in that of the batch. Bring them to it by a function: "
                "[layer, function]."
            )
            raise ModelError(message)
        axis = unlike[0]
        inputs, outputs = student[axis], teacher[axis]
        generator = torch.Generator().manual_seed(seed)
        bound = inputs**-0.5
        drawn = (
            torch.empty(shape).uniform_(-bound, bound, generator=generator) for shape in ((outputs, inputs), outputs)
        )
        return cls(axis, *(nn.Parameter(values) for values in drawn))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return ``features`` with the teacher's size, in float32.

        Raises:
            ModelError: They have another size than those that it was made for.
        """
        if features.shape[self.axis] != self.weight.shape[1]:
            message = (
                f"Features of shape {tuple(features.shape)} have size {features.shape[self.axis]} on axis {self.axis}, "
                f"and the projection was made for {self.weight.shape[1]}: expected one size in all batches. Pad them "
                "to it, or bring both sides to one shape by a function: [layer, function]."
            )
            raise ModelError(message)
        with torch.autocast(features.device.type, enabled=False):
            moved = F.linear(features.transpose(self.axis, -1).to(self.weight.dtype), self.weight, self.bias)
        return moved.transpose(self.axis, -1)

    def to(self, device: torch.device) -> Projection:
        """The same, with weights on ``device``; the Parameters stay the same objects."""
        for parameter in (self.weight, self.bias):
            parameter.data = parameter.data.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"axis": self.axis, "weight": self.weight.detach().clone(), "bias": self.bias.detach().clone()}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Projection:
        """The projection of which `state_dict` told."""
        check_keys("a projection", state, {"axis", "weight", "bias"})
        weight, bias = (nn.Parameter(state[name].clone()) for name in ("weight", "bias"))
        return cls(int(state["axis"]), weight, bias)
