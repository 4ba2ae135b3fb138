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

__all__ = [
    "KLReduction",
    "attention_map",
    "cosine_distance",
    "kl_divergence",
    "log_probabilities",
    "real_positions",
    "reduced_divergence",
    "single",
    "soft_cross_entropy",
    "soft_squared_error",
    "widened",
]

KLReduction = Literal["mean", "batchmean"]

_OFF_SUM = 0.2
"""By how much the sum of what looks like probabilities may differ from 1."""
_LEAST_PROBABILITY = 1e-9
_FLAT, _SEQUENCE = 2, 3


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
    return reduced_divergence(log_student, log_teacher, reduction)


def reduced_divergence(log_student: torch.Tensor, log_teacher: torch.Tensor, reduction: KLReduction) -> torch.Tensor:
    """`kl_divergence` of logarithms of probabilities."""
    divergence = _expected(log_teacher - log_student, log_teacher.exp()).sum()
    return divergence / (log_student.numel() if reduction == "mean" else log_student.shape[0])


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


def cosine_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of the angle between vectors on the last axis, mean over all positions; 0 to 2.

    Args:
        student: ``[*positions, size]``.
        teacher: Same shape.

    Example:
        >>> import torch
        >>> cosine_distance(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        tensor(0.5000)
    """
    return (1 - F.cosine_similarity(widened(student), widened(teacher), dim=-1)).mean()


def attention_map(features: torch.Tensor) -> torch.Tensor:
    """Where in the input features are strong: the sum of their squares at each position, of length 1 for each sample.

    Args:
        features: ``[batch, channels, *positions]``, or ``[batch, positions, size]``, as transformers have them.

    Returns:
        ``[batch, positions]``; the number of channels does not show.

    Raises:
        ModelError: There are no positions.

    Example:
        >>> import torch
        >>> attention_map(torch.tensor([[[3.0, 0.0], [0.0, 0.0]]]))  # two positions of two values each
        tensor([[1., 0.]])

    Reference: Zagoruyko, Komodakis, Paying More Attention to Attention, arXiv:1612.03928, section 3.1.
    """
    if features.dim() <= _FLAT:
        message = (
            f"Features of shape {tuple(features.shape)} have no positions to attend to: expected [batch, channels, "
            "*positions] or [batch, positions, size]. Compare another layer, or use another loss type."
        )
        raise ModelError(message)
    channels = -1 if features.dim() == _SEQUENCE else 1
    return F.normalize(widened(features).square().sum(channels).flatten(1), dim=1)


def log_probabilities(values: torch.Tensor) -> torch.Tensor:
    """The logarithm of ``values`` on the last axis if all of them look like probabilities, else of their softmax.

    They do if none is negative and every sum is 1, give or take 0.2. INC looks at the sums alone.

    Example:
        >>> import torch
        >>> log_probabilities(torch.tensor([0.25, 0.75])).exp(), log_probabilities(torch.tensor([1.0, 1.0])).exp()
        (tensor([0.2500, 0.7500]), tensor([0.5000, 0.5000]))
    """
    values = widened(values)
    looks_so = ((values.sum(-1) - 1).abs() <= _OFF_SUM).all() & (values >= 0).all()
    logarithm = (values.clamp_min(0) + _LEAST_PROBABILITY).log()
    return torch.where(looks_so, logarithm, F.log_softmax(values, dim=-1))


def real_positions(
    student: torch.Tensor, teacher: torch.Tensor, padding_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both without what is padding, ``[tokens, size]``.

    Args:
        student: ``[batch, position, size]``.
        teacher: Same batch and positions.
        padding_mask: ``[batch, position]``, nonzero at real tokens.

    Raises:
        ModelError: All of it is padding.
    """
    keep = padding_mask.to(student.device) != 0
    if not keep.any():
        message = "Every position of the batch is padding (attention_mask is all 0): expected at least one real token."
        raise ModelError(message)
    return student[keep], teacher[keep]


def _expected(values: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Sum ``probabilities * values`` over the last axis; 0 times infinity is 0, and NaN stays NaN."""
    impossible = probabilities == 0
    return (probabilities * values.masked_fill(impossible, 0.0)).sum(dim=-1)
