"""Knowledge distillation: the student learns the teacher's logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.distillers._base import LOSSES, DistillationLoss
from inc_torch.distillers._functional import (
    KLReduction,
    cosine_distance,
    kl_divergence,
    real_positions,
    single,
    soft_cross_entropy,
    soft_squared_error,
    widened,
)
from inc_torch.distillers._outputs import extract_logits

__all__ = ["HARD_TYPES", "KL_REDUCTIONS", "SOFT_TYPES", "KnowledgeDistillation"]

HARD_TYPES = ("CE", "MSE")
"""What the first of ``loss_types`` may be."""
SOFT_TYPES = ("CE", "KL", "MSE", "L1", "cosine")
"""What the second of ``loss_types`` may be."""
KL_REDUCTIONS = ("mean", "batchmean")
PARTS = 2
WEIGHT_TOLERANCE = 1e-6


@final
@LOSSES.register("KnowledgeDistillationLoss", summary="the task's loss mixed with a distance to the teacher's logits")
@dataclass(frozen=True, slots=True)
class KnowledgeDistillation(DistillationLoss):
    """``w0 * student_loss + w1 * T**2 * D(s / T, t / T)``, with the classes on the last axis of ``s`` and ``t``.

    Attributes:
        temperature: T > 0; larger is softer.
        loss_types: First what `hard_loss` is, ``"CE"`` or ``"MSE"``; it plays no part in the formula. Then D:
            ``"CE"`` `soft_cross_entropy`, ``"KL"`` `kl_divergence`, ``"MSE"`` `soft_squared_error`; or in place of
            ``T**2 * D`` the mean absolute difference of s and t, ``"L1"``, or their `cosine_distance`, ``"cosine"``.
        loss_weights: ``(w0, w1)``, each in [0, 1], sum 1. A part of weight 0 is not computed.
        kl_reduction: See `kl_divergence`.
        ignore_padding: For outputs ``[batch, position, classes]``: padded positions do not count. INC counts them.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> import torch
        >>> loss = KnowledgeDistillation(temperature=2.0, loss_types=("CE", "MSE"), loss_weights=(0.25, 0.75))
        >>> student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
        >>> loss.combine(student, teacher, student_loss=torch.tensor(4.0))  # 0.25 * 4 + 0.75 * (0 + 4) / 2
        tensor(2.5000)

    Reference: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531; INC 2.6.1
    ``KnowledgeDistillationLoss``, which lets the gradient into a given teacher output.
    """

    temperature: float = 1.0
    loss_types: tuple[str, str] = ("CE", "CE")
    loss_weights: tuple[float, float] = (0.5, 0.5)
    kl_reduction: KLReduction = "mean"
    ignore_padding: bool = False

    def __post_init__(self) -> None:
        types, weights = self.loss_types, self.loss_weights
        rules = {
            "temperature": (0 < self.temperature < math.inf, "a finite number greater than 0"),
            "loss_types": (
                len(types) == PARTS and types[0] in HARD_TYPES and types[1] in SOFT_TYPES,
                f"two names, the first one of {HARD_TYPES}, the second one of {SOFT_TYPES}",
            ),
            "loss_weights": (
                len(weights) == PARTS and min(weights) >= 0 and abs(sum(weights) - 1) <= WEIGHT_TOLERANCE,
                "two numbers in [0, 1] that sum to 1",
            ),
            "kl_reduction": (self.kl_reduction in KL_REDUCTIONS, f"one of {KL_REDUCTIONS}"),
        }
        for name, (is_kept, rule) in rules.items():
            if not is_kept:
                raise ConfigError.field(type(self).__name__, name, getattr(self, name), rule)

    @property
    def has_distance(self) -> bool:
        """Whether the teacher's part counts."""
        return self.loss_weights[1] > 0

    @property
    def needs_teacher(self) -> bool:
        """The same: nobody else knows the distance."""
        return self.has_distance

    def combine(
        self, student_output: object, teacher_output: object, student_loss: torch.Tensor | float
    ) -> torch.Tensor:
        """Return the whole formula, 0-d.

        Args:
            student_output: Logits, or an output that holds them, see `extract_logits`.
            teacher_output: The same of the teacher; unused, and may be None, where ``w1`` is 0.
            student_loss: The loss of the user's loop; unused where ``w0`` is 0.

        Raises:
            ModelError: No logits are found, their shapes differ, or ``student_loss`` is no single number.
        """
        return self.mix(student_loss, self.distance(student_output, teacher_output) if self.needs_teacher else None)

    def distance(
        self, student_output: object, teacher_output: object, padding_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``T**2 * D(s / T, t / T)``, 0-d; the teacher is detached and moved to the student's device.

        Raises:
            ModelError: No logits are found, their shapes differ, or every position is padding.
        """
        student, teacher = extract_logits(student_output), extract_logits(teacher_output).detach()
        if student.shape != teacher.shape or not student.dim():
            message = (
                f"The student's output has shape {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}: "
                "expected one shape for both, with the classes on the last axis. Use a teacher with the same classes "
                "(and the same tokenizer), and give both the same batch."
            )
            raise ModelError(message)
        student = widened(student)
        teacher = teacher.to(device=student.device, dtype=student.dtype)
        if self.ignore_padding and padding_mask is not None and padding_mask.shape == student.shape[:-1]:
            student, teacher = real_positions(student, teacher, padding_mask)
        return self._compared(student, teacher)

    def mix(self, student_loss: torch.Tensor | float, distance: torch.Tensor | None) -> torch.Tensor:
        student_weight, teacher_weight = self.loss_weights
        if distance is None:
            return student_weight * single(student_loss)
        if student_weight == 0:
            return teacher_weight * distance
        return student_weight * single(student_loss).to(distance.device) + teacher_weight * distance

    def hard_loss(self, student_output: object, targets: torch.Tensor) -> torch.Tensor:
        """Return the plain loss against ground truth that the first of ``loss_types`` names, mean, 0-d.

        Args:
            student_output: Logits, or an output that holds them. For ``"CE"`` the classes are on axis 1, as in
                `torch.nn.CrossEntropyLoss`.
            targets: Class indices (or probabilities) for ``"CE"``, values of the output's shape for ``"MSE"``.

        Raises:
            ModelError: Shapes differ for ``"MSE"``.
        """
        logits = widened(extract_logits(student_output))
        targets = targets.to(logits.device)
        if self.loss_types[0] == "CE":
            return F.cross_entropy(logits, targets)
        if logits.shape != targets.shape:
            message = (
                f"The student's output has shape {tuple(logits.shape)} and the targets {tuple(targets.shape)}: "
                "expected one shape for both with loss type 'MSE'."
            )
            raise ModelError(message)
        return F.mse_loss(logits, targets.to(logits.dtype))

    def _compared(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        scale = self.temperature**2
        match self.loss_types[1]:
            case "CE":
                return soft_cross_entropy(student, teacher, self.temperature) * scale
            case "KL":
                return kl_divergence(student, teacher, self.temperature, self.kl_reduction) * scale
            case "MSE":
                return soft_squared_error(student, teacher, self.temperature) * scale
            case "L1":
                return F.l1_loss(student, teacher)
        return cosine_distance(student, teacher)
