"""Self-distillation: parts of a model with several outputs learn from its deepest one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch

from inc_torch.core.errors import ConfigError, InexactWarning, ModelError, did_you_mean, listed
from inc_torch.core.user_warning import warn_user
from inc_torch.distillers._base import LOSSES, DistillationLoss
from inc_torch.distillers._functional import kl_divergence, single, soft_cross_entropy, widened
from inc_torch.distillers._outputs import parts_of

__all__ = ["SELF_TYPES", "Pair", "SelfDistillation"]

SELF_TYPES = ("CE", "KL", "L2")
"""What each of ``loss_types`` may be."""

Pair = tuple[str, str]
"""The names of an output that learns, and of the one that it learns from."""

_WITH_TEMPERATURE_IN_INC = 1


@final
@LOSSES.register("SelfKnowledgeDistillationLoss", summary="outputs of one model learn from another of its outputs")
@dataclass(frozen=True, slots=True)
class SelfDistillation(DistillationLoss):
    """``sum_g w_g * sum_{(a, b) in g} D_g(outputs[a], outputs[b])``, where the student's output is a dict of tensors.

    ``D`` is ``"CE"``, `soft_cross_entropy` or ``"KL"``, `kl_divergence` of the outputs divided by T, without a factor
    of ``T**2``; or ``"L2"``, the Euclidean norm of the whole difference, which grows with the batch. No gradient
    reaches ``outputs[b]``, and no teacher is ever run.

    Attributes:
        groups: Pairs of names, group by group. None at all: every output learns from the last one of the same shape by
            ``"CE"``, and the task's loss is added.
        loss_types: ``D`` of each group.
        loss_weights: ``w`` of each group, in [0, 1].
        temperature: T > 0.
        add_origin_loss: Add the task's loss, with a weight of 1. Else it does not count.
        inc_compat: Compute as INC does: T counts in the second group alone, whatever its type, and of G groups the
            first counts G times, the second G - 1 times, ...

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> loss = SelfDistillation(groups=((("early", "deep"),),), loss_types=("L2",), loss_weights=(0.5,))
        >>> outputs = {"early": torch.tensor([[3.0, 0.0]]), "deep": torch.tensor([[0.0, 4.0]])}
        >>> loss.mix(torch.tensor(9.0), loss.distance(outputs, None))
        tensor(2.5000)

    Reference: Zhang et al. 2019, Be Your Own Teacher, arXiv:1905.08094; INC 2.6.1 ``SelfKnowledgeDistillationLoss``,
    which computes as ``inc_compat`` says, runs a teacher that it does not use, and lets gradients into both sides.
    """

    groups: tuple[tuple[Pair, ...], ...] = ()
    loss_types: tuple[str, ...] = ()
    loss_weights: tuple[float, ...] = ()
    temperature: float = 1.0
    add_origin_loss: bool = False
    inc_compat: bool = False

    def __post_init__(self) -> None:
        count = len(self.groups)
        rules = {
            "loss_types": (
                len(self.loss_types) == count and all(name in SELF_TYPES for name in self.loss_types),
                f"one of {SELF_TYPES} for each of {count} groups",
            ),
            "loss_weights": (
                len(self.loss_weights) == count and all(0 <= weight <= 1 for weight in self.loss_weights),
                f"a number in [0, 1] for each of {count} groups",
            ),
            "temperature": (0 < self.temperature < math.inf, "a finite number greater than 0"),
        }
        for name, (is_kept, rule) in rules.items():
            if not is_kept:
                raise ConfigError.field(type(self).__name__, name, getattr(self, name), rule)

    @property
    def has_distance(self) -> bool:
        """Whether any group counts."""
        return not self.groups or any(self.loss_weights)

    @property
    def needs_teacher(self) -> bool:
        """Never."""
        return False

    def distance(
        self,
        student_output: object,
        teacher_output: object,
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Return the weighted sum over all groups, 0-d; None, with a warning, if there is nothing to compare.

        Args:
            student_output: A dict of tensors; without groups anything that holds several.
            teacher_output: Unused: the student is its own teacher.
            padding_mask: Unused: outputs need not be of tokens.

        Raises:
            ModelError: An output is missing, or the two of a pair have different shapes.
        """
        if not self.groups:
            return _from_the_last(student_output, self.temperature)
        outputs = _named_tensors(student_output)
        parts = [
            weight * sum(self._compared(outputs, pair, kind, index) for pair in group)
            for index, (group, kind, weight) in enumerate(
                zip(self.groups, self.loss_types, self.loss_weights, strict=True)
            )
        ]
        times = range(len(parts), 0, -1) if self.inc_compat else [1] * len(parts)
        return torch.stack([count * torch.as_tensor(part) for count, part in zip(times, parts, strict=True)]).sum()

    def mix(self, student_loss: torch.Tensor | float, distance: torch.Tensor | None) -> torch.Tensor:
        """Return the distance, with the task's loss if that counts; the task's loss if there is no distance."""
        if distance is None:
            return single(student_loss)
        if self.add_origin_loss or not self.groups:
            return distance + single(student_loss).to(distance.device)
        return distance

    def _compared(self, outputs: Mapping[str, torch.Tensor], pair: Pair, kind: str, index: int) -> torch.Tensor:
        student, teacher = (_named(outputs, name) for name in pair)
        if student.shape != teacher.shape or not student.dim():
            message = (
                f"The outputs {pair[0]!r} of shape {tuple(student.shape)} and {pair[1]!r} of shape "
                f"{tuple(teacher.shape)} are to be compared: expected one shape for both, with the classes on the last "
                "axis. Bring them to one shape in the model's forward."
            )
            raise ModelError(message)
        teacher = teacher.detach().to(student.device)
        has_temperature = index == _WITH_TEMPERATURE_IN_INC if self.inc_compat else kind != "L2"
        return _distance(kind, student, teacher, self.temperature if has_temperature else 1.0)


def _distance(kind: str, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    if kind == "CE":
        return soft_cross_entropy(student, teacher, temperature)
    if kind == "KL":
        return kl_divergence(student, teacher, temperature)
    norm: torch.Tensor = torch.linalg.vector_norm((widened(student) - widened(teacher)) / temperature)
    return norm


def _named_tensors(output: object) -> Mapping[str, torch.Tensor]:
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items() if isinstance(value, torch.Tensor)}
    message = (
        f"Self-distillation with layer_mappings got an output of type {type(output).__name__}: expected a dict of "
        "tensors by name. Return one from the model's forward, or collect it before on_after_compute_loss."
    )
    raise ModelError(message)


def _named(outputs: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in outputs:
        message = (
            f"There is no tensor {name!r} among the model's outputs {listed(list(outputs))}, as layer_mappings asks "
            f"for.{did_you_mean(name, outputs)}"
        )
        raise ModelError(message)
    return outputs[name]


def _from_the_last(output: object, temperature: float) -> torch.Tensor | None:
    """What every output learns from the last one."""
    tensors = [value for value in parts_of(output) if isinstance(value, torch.Tensor) and value.dim()]
    others = [value for value in tensors[:-1] if value.shape == tensors[-1].shape]
    if not others:
        message = (
            f"Self-distillation without layer_mappings got an output of type {type(output).__name__}, in which no two "
            "tensors have one shape: there is nothing to learn from, and the loss stays as it is. Return the outputs "
            "of several depths, or give layer_mappings."
        )
        warn_user(message, InexactWarning)
        return None
    last = tensors[-1].detach()
    return torch.stack([soft_cross_entropy(other, last.to(other.device), temperature) for other in others]).mean()
