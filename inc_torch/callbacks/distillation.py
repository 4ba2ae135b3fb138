"""Distillation as a callback: the teacher's word joins the loss."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import nn

from inc_torch.callbacks._side_optimizer import SideOptimizer
from inc_torch.core.callback import Callback
from inc_torch.core.errors import ConfigError, StateError
from inc_torch.core.hooks import Phase, Progress, Stage
from inc_torch.core.state import check_keys
from inc_torch.distillers import (
    TEACHER_LOGITS,
    DistillationLoss,
    FeatureDistillation,
    KnowledgeDistillation,
    Lesson,
    SelfDistillation,
    Taps,
    Teacher,
)

__all__ = ["DistillationCallbacks", "require_teachers"]

_WORDS: Mapping[type[DistillationLoss], str] = {
    KnowledgeDistillation: "logits",
    FeatureDistillation: "layers",
    SelfDistillation: "own outputs",
}
"""What is learnt, for a plan."""


@final
class DistillationCallbacks(Callback):
    """Mixes the distance between student and teacher into the loss of the user's loop.

    Args:
        loss: What the distance is and how it is weighted. Of several each gets what the one before it returned for
            the loss of the task.
        teacher_model: Runs in every `on_after_compute_loss` that gets no ``teacher_output``; may be left out where
            all get one. Of several teachers the distances are averaged. A teacher that shares weights with the student
            is replaced by a frozen copy, with one warning. None is ever part of the model, of its ``state_dict`` or of
            the saved training state.
        student: The model, before anything in it is rewritten. Left out, ``prepare`` looks at it.
        start_step: From this optimizer step on the distance counts; before it the loss of the task is left as it is.
        end_step: From this one on it counts no longer; None is never.

    Attributes:
        losses: The losses, as given.
        teachers: The teachers.
        last_distillation_loss: The distance of the last batch, before weighting (for knowledge distillation
            ``T**2 * D``), of several losses their sum, 0-d and detached, for logging; None before the first batch and
            where there is none.

    Raises:
        ConfigTypeError: A ``teacher_model`` is no `torch.nn.Module`.

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
    state_version: ClassVar[int] = 2
    # Features of earlier batches are dropped, and projections updated by gradients that nobody else clears.
    exact_when_late = frozenset({"on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step"})
    last_distillation_loss: torch.Tensor | None

    def __init__(
        self,
        loss: DistillationLoss | Sequence[DistillationLoss],
        teacher_model: nn.Module | Sequence[nn.Module] | None = None,
        *,
        student: nn.Module | None = None,
        start_step: int = 0,
        end_step: int | None = None,
    ) -> None:
        self.losses = (loss,) if isinstance(loss, DistillationLoss) else tuple(loss)
        models = [teacher_model] if isinstance(teacher_model, nn.Module) else list(teacher_model or ())
        self.teachers = tuple(Teacher(model) for model in models)
        self.start_step, self.end_step = start_step, end_step
        self.last_distillation_loss = None
        # Every teacher has features of its own, so what a loss learns of them, such as projections, is its own too.
        self._lessons = [
            Lesson(self.losses if index == 0 else copy.deepcopy(self.losses), teacher)
            for index, teacher in enumerate(self.teachers or (None,))
        ]
        self._learning = [
            (loss, SideOptimizer(loss.learning_rate)) for lesson in self._lessons for loss in lesson.losses
        ]
        self._taps: Taps | None = None
        if student is not None:
            self._meet(student)

    def __repr__(self) -> str:
        return "Distillation Callbacks"

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss needs what a teacher says."""
        return any(loss.needs_teacher for loss in self.losses)

    def prepare(self, model: nn.Module, progress: Progress) -> None:
        super().prepare(model, progress)
        self._meet(model)

    def place_teachers(self, device: torch.device) -> None:
        """Move all teachers to ``device``."""
        for teacher in self.teachers:
            teacher.module.to(device)

    def on_train_begin(self, dataloader: object = None) -> None:
        if self._taps is not None:
            self._taps.attach()
        for lesson in self._lessons:
            lesson.begin()

    def on_step_begin(self, batch_id: int) -> None:
        self._forget()

    def on_after_compute_loss(
        self,
        input: object,  # noqa: A002  INC's argument name, used as a keyword in scripts
        student_output: object,
        student_loss: torch.Tensor | float,
        teacher_output: object = None,
    ) -> torch.Tensor:
        """Return the mixed loss, a new 0-d tensor.

        Args:
            input: The batch as the student got it; the teacher gets it too, see `inc_torch.distillers.Teacher`. Logits
                in it under the key ``"teacher_logits"`` are the ``teacher_output``.
            student_output: Logits, or an output that holds them, see `inc_torch.distillers.extract_logits`.
            student_loss: The loss of the task, a single number.
            teacher_output: The teacher's logits or output for this batch, if known; the teacher is not run then,
                unless layers inside it are compared.

        Raises:
            ConfigError: The distance counts, and there is neither a teacher nor a ``teacher_output``.
            ModelError: Outputs or loss have the wrong form.
        """
        self.last_distillation_loss = None
        distances: list[torch.Tensor | None] = [None] * len(self.losses)
        if not self._is_due():
            self._forget()
            return torch.as_tensor(student_loss)
        if any(loss.has_distance for loss in self.losses):
            if teacher_output is None and isinstance(input, Mapping):
                teacher_output = input.get(TEACHER_LOGITS)
            distances = self._distances(input, student_output, teacher_output)
        found = [distance.detach() for distance in distances if distance is not None]
        self.last_distillation_loss = torch.stack(found).sum() if found else None
        loss = student_loss
        for own, distance in zip(self.losses, distances, strict=True):
            loss = own.mix(loss, distance)
        return torch.as_tensor(loss)

    def on_after_optimizer_step(self) -> None:
        followed, ranks = list(self.progress.optimizers), self.progress.ranks
        for loss, optimizer in self._learning:
            optimizer.step(loss.trained_parameters(), followed, ranks)

    def on_train_end(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        if self._taps is not None:
            self._taps.remove()
        for lesson in self._lessons:
            lesson.end()

    def phases(self) -> Iterable[Phase]:
        what = " and ".join(_WORDS.get(type(loss), type(loss).__name__) for loss in self.losses if loss.has_distance)
        if what:
            yield Phase("distillation", what, self.start_step, None if self.end_step is None else self.end_step - 1)

    def metrics(self) -> Mapping[str, float]:
        """``distillation_loss``: the distance of the last batch, before weighting."""
        return {} if self.last_distillation_loss is None else {"distillation_loss": float(self.last_distillation_loss)}

    def state_dict(self) -> dict[str, Any]:
        """The SHA-256 of teachers that are copies of the student, and what losses train for themselves."""
        learnt = [
            {"loss": loss.state_dict(), "optimizer": optimizer.state_dict(loss.trained_parameters())}
            for loss, optimizer in self._learning
        ]
        return {"snapshots": self._snapshots(), "learnt": learnt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, if the run goes on with the teachers that it had.

        Raises:
            StateError: A teacher that is a copy of the student differs, or only one of the two runs had one.
        """
        check_keys(type(self).__name__, state, {"snapshots", "learnt"})
        if list(state["snapshots"]) != self._snapshots():
            message = (
                "The teacher is a frozen copy of the student, taken by prepare_compression, and it differs from the "
                "one of the saved run. Call prepare_compression on the model with the weights it had at the start of "
                "that run, and load the trained weights afterwards; or save the teacher and pass it as teacher_model."
            )
            raise StateError(message)
        for (loss, optimizer), learnt in zip(self._learning, state["learnt"], strict=True):
            check_keys(type(self).__name__, learnt, {"loss", "optimizer"})
            loss.load_state_dict(learnt["loss"])
            optimizer.load_state_dict(learnt["optimizer"], loss.trained_parameters())

    def _meet(self, student: nn.Module) -> None:
        layers = [layer for loss in self.losses if loss.has_distance for layer in loss.student_layers]
        self._taps = Taps(student, layers, "student") if layers else None
        for lesson in self._lessons:
            lesson.meet(student)

    def _forget(self) -> None:
        """Drop features whose loss never came."""
        if self._taps is not None:
            self._taps.forget()

    def _is_due(self) -> bool:
        if self.start_step == 0 and self.end_step is None:
            return True
        return self.start_step <= self.progress.step and (self.end_step is None or self.progress.step < self.end_step)

    def _distances(self, inputs: object, student_output: object, teacher_output: object) -> list[torch.Tensor | None]:
        """The distance by each loss, the mean over all teachers."""
        features = {} if self._taps is None else self._taps.take()
        mask = _padding_mask(inputs)
        told = [lesson.distances(inputs, student_output, features, teacher_output, mask) for lesson in self._lessons]
        return [_mean([part for part in parts if part is not None]) for parts in zip(*told, strict=True)]

    def _snapshots(self) -> list[str]:
        return [teacher.fingerprint() if teacher.is_snapshot else "" for teacher in self.teachers]


def require_teachers(callbacks: Iterable[Callback], way_out: str) -> None:
    """Refuse distillation without a teacher, for trainers that hand no ``teacher_output`` over.

    Raises:
        ConfigError: A loss needs a teacher and has none; ``way_out`` is named.
    """
    for callback in callbacks:
        if isinstance(callback, DistillationCallbacks) and callback.needs_teacher and not callback.teachers:
            message = (
                "DistillationConfig has no teacher, and a Trainer hands no teacher_output over: the teacher would "
                f"have no say. Give it: DistillationConfig(teacher_model=teacher), or {way_out}."
            )
            raise ConfigError(message)


def _mean(distances: Sequence[torch.Tensor]) -> torch.Tensor | None:
    return torch.stack([one.to(distances[0].device) for one in distances]).mean() if distances else None


def _padding_mask(inputs: object) -> torch.Tensor | None:
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask if isinstance(mask, torch.Tensor) else None
