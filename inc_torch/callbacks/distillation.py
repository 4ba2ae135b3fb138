"""Distillation as a callback: the teacher's word joins the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

import torch
from torch import nn

from inc_torch.core.callback import Callback
from inc_torch.core.errors import ConfigError, StateError
from inc_torch.core.hooks import Progress, Stage
from inc_torch.core.state import check_keys
from inc_torch.distillers import DistillationLoss, Teacher

__all__ = ["DistillationCallbacks", "require_teachers"]


@final
class DistillationCallbacks(Callback):
    """Mixes the distance between student and teacher into the loss of the user's loop.

    Args:
        loss: What the distance is and how it is weighted.
        teacher_model: Runs in every `on_after_compute_loss` that gets no ``teacher_output``; may be left out where
            all get one. A teacher that shares weights with the student is replaced by a frozen copy, with one
            warning. It is never part of the model, of its ``state_dict`` or of the saved training state.
        student: The model, before anything in it is rewritten. Left out, ``prepare`` looks at it.

    Attributes:
        last_distillation_loss: The distance of the last batch, before weighting (for knowledge distillation
            ``T**2 * D``), 0-d and detached, for logging; None before the first batch and where there is none.

    Raises:
        ConfigTypeError: ``teacher_model`` is no `torch.nn.Module`.

    Example:
        >>> import torch
        >>> from inc_torch.callbacks import DistillationCallbacks
        >>> from inc_torch.distillers import KnowledgeDistillation
        >>> distillation = DistillationCallbacks(KnowledgeDistillation(loss_types=("CE", "MSE")))
        >>> student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
        >>> distillation.on_after_compute_loss(None, student, torch.tensor(4.0), teacher_output=teacher)
        tensor(3.)
        >>> distillation.last_distillation_loss
        tensor(2.)
    """

    stage: ClassVar[Stage] = Stage.OBSERVE
    last_distillation_loss: torch.Tensor | None

    def __init__(
        self, loss: DistillationLoss, teacher_model: nn.Module | None = None, *, student: nn.Module | None = None
    ) -> None:
        self.loss = loss
        self.teacher = None if teacher_model is None else Teacher(teacher_model)
        self.last_distillation_loss = None
        if student is not None:
            self._separate_teacher_from(student)

    def __repr__(self) -> str:
        return "Distillation Callbacks"

    def prepare(self, model: nn.Module, progress: Progress) -> None:
        super().prepare(model, progress)
        self._separate_teacher_from(model)

    def on_after_compute_loss(
        self,
        input: object,  # noqa: A002  INC's argument name, used as a keyword in scripts
        student_output: object,
        student_loss: torch.Tensor | float,
        teacher_output: object = None,
    ) -> torch.Tensor:
        """Return the mixed loss, a new 0-d tensor.

        Args:
            input: The batch as the student got it; the teacher gets it too, see `inc_torch.distillers.Teacher`.
            student_output: Logits, or an output that holds them, see `inc_torch.distillers.extract_logits`.
            student_loss: The loss of the task, a single number.
            teacher_output: The teacher's logits or output for this batch, if known; the teacher is not run then.

        Raises:
            ConfigError: The distance counts, and there is neither a teacher nor a ``teacher_output``.
            ModelError: Outputs or loss have the wrong form.
        """
        self.last_distillation_loss = None
        if not self.loss.has_distance:
            return self.loss.mix(student_loss, None)
        if teacher_output is None and self.loss.needs_teacher:
            teacher_output = self._ask_teacher(input)
        distance = self.loss.distance(student_output, teacher_output, _padding_mask(input))
        self.last_distillation_loss = None if distance is None else distance.detach()
        return self.loss.mix(student_loss, distance)

    def metrics(self) -> Mapping[str, float]:
        """``distillation_loss``: the distance of the last batch, before weighting."""
        return {} if self.last_distillation_loss is None else {"distillation_loss": float(self.last_distillation_loss)}

    def state_dict(self) -> dict[str, Any]:
        """The SHA-256 of a teacher that is a copy of the student, else nothing."""
        return {"snapshot": self.teacher.fingerprint()} if self.teacher and self.teacher.is_snapshot else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the run goes on with the teacher that it had, where that was a copy of the student.

        Raises:
            StateError: The copy differs, or only one of the two runs had one.
        """
        current = self.state_dict()
        check_keys(type(self).__name__, state, set(current))
        if state != current:
            message = (
                "The teacher is a frozen copy of the student, taken by prepare_compression, and it differs from the "
                "one of the saved run. Call prepare_compression on the model with the weights it had at the start of "
                "that run, and load the trained weights afterwards; or save the teacher and pass it as teacher_model."
            )
            raise StateError(message)

    def _separate_teacher_from(self, student: nn.Module) -> None:
        if self.teacher is not None and self.loss.needs_teacher:
            self.teacher.separate_from(student)

    def _ask_teacher(self, inputs: object) -> object:
        if self.teacher is None:
            message = (
                "Distillation has neither a teacher nor a teacher_output for this batch: expected one of them. Pass "
                "teacher_model to DistillationConfig, or the teacher's logits as teacher_output to "
                "on_after_compute_loss."
            )
            raise ConfigError(message)
        return self.teacher(inputs)


def require_teachers(callbacks: Iterable[Callback], way_out: str) -> None:
    """Refuse distillation without a teacher, for trainers that hand no ``teacher_output`` over.

    Raises:
        ConfigError: A loss needs a teacher and has none; ``way_out`` is named.
    """
    for callback in callbacks:
        if isinstance(callback, DistillationCallbacks) and callback.loss.needs_teacher and callback.teacher is None:
            message = (
                "DistillationConfig has no teacher, and a Trainer hands no teacher_output over: the teacher would "
                f"have no say. Give it: DistillationConfig(teacher_model=teacher), or {way_out}."
            )
            raise ConfigError(message)


def _padding_mask(inputs: object) -> torch.Tensor | None:
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask if isinstance(mask, torch.Tensor) else None
