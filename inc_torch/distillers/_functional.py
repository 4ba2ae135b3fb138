"""Distances between the outputs of a student and of a teacher: pure functions.

Legend: ``s`` student logits, ``t`` teacher logits, both ``[*positions, classes]`` of any float dtype;
``T`` the temperature. Results are 0-d. Halves are widened to float32 before anything is computed, whatever
autocast says. Gradients flow to both sides: who wants none for the teacher detaches it.
"""

from __future__ import annotations

from numbers import Real
from typing import Literal

import torch
import torch.nn.functional as F

from inc_torch.core.errors import ModelError

__all__ = ["KLReduction", "kl_divergence", "single", "soft_cross_entropy", "soft_squared_error", "widened"]

KLReduction = Literal["mean", "batchmean"]


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Return ``logits`` in float32, or in float64 if they are float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def single(student_loss: object) -> torch.Tensor:
    """The user's loss as a 0-d tensor, still in its graph."""
    if not isinstance(student_loss, torch.Tensor | Real):
        message = (
            f"student_loss is of type {type(student_loss).__name__}: expected a tensor with a single number, or a "
            "number. Compute the task's loss before on_after_compute_loss, or give it the weight 0 in loss_weights."
        )
        raise ModelError(message)
    loss = torch.as_tensor(student_loss)
    if loss.numel() != 1:
        message = (
            f"student_loss has shape {tuple(loss.shape)}: expected a single number. Reduce it with .mean() or .sum() "
            "before on_after_compute_loss."
        )
        raise ModelError(message)
    return loss.reshape(())


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Cross entropy with the teacher's probabilities as targets, mean over all positions.

    ``mean_positions(-sum_classes(softmax(t / T) * log_softmax(s / T)))``. A class that the teacher excludes
    (logit ``-inf``) counts as 0, also where the student excludes it too.

    Args:
        student: ``[*positions, classes]``.
        teacher: Same shape.
        temperature: T > 0; larger is softer.

    Example:
        >>> import torch
        >>> even = torch.zeros(1, 4)
        >>> soft_cross_entropy(even, torch.tensor([[9.0, 0.0, 0.0, 0.0]])).exp()
        tensor(4.0000)

    Reference: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    log_student = F.log_softmax(widened(student) / temperature, dim=-1)
    probabilities = F.softmax(widened(teacher) / temperature, dim=-1)
    return -_expected(log_student, probabilities).mean()


def kl_divergence(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, reduction: KLReduction = "mean"
) -> torch.Tensor:
    """Kullback-Leibler divergence of the student's distribution from the teacher's.

    ``softmax(t / T) * (log_softmax(t / T) - log_softmax(s / T))``, reduced as `torch.nn.functional.kl_div` does.

    Args:
        student: ``[*positions, classes]``.
        teacher: Same shape.
        temperature: T > 0; larger is softer.
        reduction: ``"mean"``, over every element, classes too, is what INC computes: ``classes`` times smaller
            than the divergence itself. ``"batchmean"``, the sum over the size of the first axis, is the
            divergence for logits ``[batch, classes]``; with more axes it adds up the positions of a sample.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
        >>> kl_divergence(student, teacher, reduction="batchmean") / kl_divergence(student, teacher)
        tensor(4.)

    Reference: INC 2.6.1, where it is ``kl_div`` with the element mean.
    """
    log_student = F.log_softmax(widened(student) / temperature, dim=-1)
    log_teacher = F.log_softmax(widened(teacher) / temperature, dim=-1)
    divergence = _expected(log_teacher - log_student, log_teacher.exp()).sum()
    return divergence / (student.numel() if reduction == "mean" else student.shape[0])


def soft_squared_error(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Squared difference of the softened logits, ``((s - t) / T) ** 2``, mean over every element.

    Args:
        student: Any shape.
        teacher: Same shape.
        temperature: T > 0. Times T squared, the result no longer depends on it.

    Example:
        >>> import torch
        >>> soft_squared_error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]), temperature=2.0)
        tensor(0.5000)
    """
    return F.mse_loss(widened(student) / temperature, widened(teacher) / temperature)


def _expected(values: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Sum ``probabilities * values`` over the last axis; 0 times infinity is 0, and NaN stays NaN."""
    impossible = probabilities == 0
    return (probabilities * values.masked_fill(impossible, 0.0)).sum(dim=-1)
