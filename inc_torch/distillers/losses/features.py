"""Distillation of intermediate layers: what the student computes on the way comes near to what the teacher does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.core.state import check_keys
from inc_torch.distillers._base import LOSSES, DistillationLoss, Output
from inc_torch.distillers._functional import (
    KLReduction,
    attention_map,
    cosine_distance,
    log_probabilities,
    real_positions,
    reduced_divergence,
    single,
    widened,
)
from inc_torch.distillers._projection import Projection
from inc_torch.distillers._select import Selection, selected

__all__ = ["FEATURE_TYPES", "FeatureDistillation", "FeaturePair", "Tap"]

FEATURE_TYPES = ("MSE", "KL", "L1", "cosine", "attention")
"""What the kind of a pair may be."""

_SEQUENCE = 3


@final
@dataclass(frozen=True, slots=True)
class Tap:
    """Where features are taken.

    Attributes:
        layer: The module's name; ``""`` is the model itself.
        selection: Which part of its output, see `inc_torch.distillers.selected`.
    """

    layer: str
    selection: Selection = None

    def __str__(self) -> str:
        return repr(self.layer) if self.selection is None else f"{self.layer!r} at {self.selection!r}"


@final
@dataclass(frozen=True, slots=True)
class FeaturePair:
    """Two places that are compared.

    Attributes:
        student: The one that learns.
        teacher: The one that it learns from.
        kind: One of `FEATURE_TYPES`.
        weight: In [0, 1]; with 0 the pair is neither recorded nor compared.
    """

    student: Tap
    teacher: Tap
    kind: str = "MSE"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in FEATURE_TYPES:
            raise ConfigError.field(type(self).__name__, "kind", self.kind, f"one of {FEATURE_TYPES}")
        if not 0 <= self.weight <= 1:
            raise ConfigError.field(type(self).__name__, "weight", self.weight, "a number in [0, 1]")


@final
@LOSSES.register("IntermediateLayersKnowledgeDistillationLoss", summary="features of layers of the two models compared")
class FeatureDistillation(DistillationLoss):
    """``sum_i w_i * D_i(M_i(s_i), t_i)``, s and t the features of the pairs, plus the task's loss if that is to count.

    ``D`` is the mean squared difference, ``"MSE"``; the mean absolute one, ``"L1"``; the divergence of t's distribution
    on the last axis from that of s, ``"KL"``, where features that look like probabilities are taken for such; the
    `cosine_distance`, ``"cosine"``; or the mean squared difference of the two `attention_map`, ``"attention"``.

    Where shapes differ in one axis, ``M`` is a `Projection`, made for the first batch, else nothing. It learns
    beside the student; ``"attention"`` needs none for channels.

    Args:
        pairs: What is compared.
        add_origin_loss: Add the task's loss, with a weight of 1. Else it does not count.
        kl_reduction: See `inc_torch.distillers.kl_divergence`.
        ignore_padding: Of features ``[batch, position, size]`` padded positions do not count.
        learning_rate: Of the projections; 0 leaves them as they were drawn.

    Raises:
        ConfigError: There is no pair.

    Example:
        >>> pair = FeaturePair(Tap("encoder"), Tap("encoder"), "L1", weight=0.5)
        >>> loss = FeatureDistillation([pair])
        >>> student, teacher = {"encoder": torch.tensor([[1.0, 3.0]])}, {"encoder": torch.tensor([[1.0, 1.0]])}
        >>> loss.mix(torch.tensor(9.0), loss.distance(student, teacher))
        tensor(0.5000)

    Reference: Romero et al., FitNets, arXiv:1412.6550; Zagoruyko, Komodakis, arXiv:1612.03928; INC 2.6.1
    ``IntermediateLayersKnowledgeDistillationLoss``, whose projections are random and stay so.
    """

    def __init__(
        self,
        pairs: Sequence[FeaturePair],
        *,
        add_origin_loss: bool = False,
        kl_reduction: KLReduction = "mean",
        ignore_padding: bool = False,
        learning_rate: float = 1e-3,
    ) -> None:
        if not pairs:
            raise ConfigError.field(type(self).__name__, "pairs", pairs, "at least one pair")
        self.pairs = tuple(pairs)
        self.add_origin_loss = add_origin_loss
        self.kl_reduction: KLReduction = kl_reduction
        self.ignore_padding = ignore_padding
        self._learning_rate = learning_rate
        self._projections: dict[int, Projection] = {}

    @property
    def has_distance(self) -> bool:
        """Whether any pair counts."""
        return any(pair.weight for pair in self.pairs)

    @property
    def student_layers(self) -> tuple[str, ...]:
        """The layers of the student that are compared."""
        return tuple(dict.fromkeys(pair.student.layer for pair in self.pairs if pair.weight))

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The layers of the teacher that are compared."""
        return tuple(dict.fromkeys(pair.teacher.layer for pair in self.pairs if pair.weight))

    @property
    def learning_rate(self) -> float:
        """Of the projections."""
        return self._learning_rate

    @property
    def projections(self) -> Mapping[int, Projection]:
        """By the index of the pair, once a batch has shown that it needs one."""
        return self._projections

    def trained_parameters(self) -> tuple[nn.Parameter, ...]:
        """Weights and biases of the projections."""
        ordered = [self._projections[index] for index in sorted(self._projections)]
        return tuple(parameter for one in ordered for parameter in (one.weight, one.bias))

    def state_dict(self) -> dict[str, Any]:
        """The projections."""
        return {"projections": {index: one.state_dict() for index, one in sorted(self._projections.items())}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the projections of another run of the same pairs."""
        check_keys(type(self).__name__, state, {"projections"})
        self._projections = {int(index): Projection.of_state(one) for index, one in state["projections"].items()}

    def distance(
        self,
        student_output: Output,
        teacher_output: Output,
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the weighted sum over all pairs, 0-d.

        Args:
            student_output: By the name of each of `student_layers` what it returned.
            teacher_output: The same of the teacher.
            padding_mask: ``[batch, position]``, nonzero at real tokens.

        Raises:
            ModelError: Features are no tensors, have no gradient to learn by, or have shapes that cannot be compared.
        """
        parts = [
            pair.weight * self._compared(index, pair, student_output, teacher_output, padding_mask)
            for index, pair in enumerate(self.pairs)
            if pair.weight
        ]
        return torch.stack([part.to(parts[0].device) for part in parts]).sum()

    def mix(self, student_loss: torch.Tensor | float, distance: torch.Tensor | None) -> torch.Tensor:
        """Return the distance, with the task's loss if that counts; the task's loss if there is no distance."""
        if distance is None:
            return single(student_loss)
        return distance + single(student_loss).to(distance.device) if self.add_origin_loss else distance

    def _compared(
        self,
        index: int,
        pair: FeaturePair,
        student_output: Mapping[str, object],
        teacher_output: Mapping[str, object],
        padding_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        student = selected(student_output[pair.student.layer], pair.student.selection, pair.student.layer)
        teacher = selected(teacher_output[pair.teacher.layer], pair.teacher.selection, pair.teacher.layer)
        teacher = teacher.detach().to(student.device)
        try:
            return self._distance(index, pair.kind, student, teacher, padding_mask)
        except ModelError as error:
            error.add_note(f"While comparing the student's {pair.student} with the teacher's {pair.teacher}.")
            raise

    def _distance(
        self, index: int, kind: str, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        is_sequence = mask is not None and student.dim() == _SEQUENCE and mask.shape == student.shape[:2]
        real = mask if self.ignore_padding and is_sequence else None
        if kind == "attention":
            return _attention_distance(student, teacher, real)
        student = self._matched(index, student, teacher)
        if real is not None:
            student, teacher = real_positions(student, teacher, real)
        return self._difference(kind, student, teacher, has_projection=index in self._projections)

    def _matched(self, index: int, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The student's features with the shape of the teacher's."""
        if index not in self._projections:
            made = Projection.between(tuple(student.shape), tuple(teacher.shape), seed=index)
            if made is None:
                return student
            self._projections[index] = made
        return self._projections[index].to(student.device)(student)

    def _difference(
        self, kind: str, student: torch.Tensor, teacher: torch.Tensor, *, has_projection: bool
    ) -> torch.Tensor:
        student, teacher = widened(student), widened(teacher)
        match kind:
            case "MSE":
                return F.mse_loss(student, teacher)
            case "L1":
                return F.l1_loss(student, teacher)
            case "cosine":
                return cosine_distance(student, teacher)
        log_student = F.log_softmax(student, dim=-1) if has_projection else log_probabilities(student)
        return reduced_divergence(log_student, log_probabilities(teacher), self.kl_reduction)


def _attention_distance(student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    if real is not None:
        student, teacher = (part * (real != 0).to(part).unsqueeze(-1) for part in (student, teacher))
    ours, theirs = attention_map(student), attention_map(teacher)
    if ours.shape != theirs.shape:
        message = (
            f"Features of shape {tuple(student.shape)} and of shape {tuple(teacher.shape)} have different positions: "
            "expected the same for loss type 'attention', while channels may differ. Pool the larger one by a "
            "function: [layer, function]."
        )
        raise ModelError(message)
    return F.mse_loss(ours, theirs)
