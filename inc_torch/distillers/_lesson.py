"""One teacher, and what a student is told of it for a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import ConfigError
from inc_torch.distillers._base import DistillationLoss
from inc_torch.distillers._taps import Taps
from inc_torch.distillers._teacher import Teacher

__all__ = ["Lesson"]


@final
class Lesson:
    """Several losses that compare a student with one teacher, which runs once a batch.

    Args:
        losses: What is compared.
        teacher: Who is asked; None where every batch brings a ``teacher_output``, or no loss needs one.
    """

    def __init__(self, losses: Sequence[DistillationLoss], teacher: Teacher | None) -> None:
        self.losses = tuple(losses)
        self.teacher = teacher
        self._taps: Taps | None = None

    def meet(self, student: nn.Module) -> None:
        """Keep the teacher apart from ``student``, and find the layers that are compared.

        Raises:
            ModelError: The teacher has no layer of a name asked for.
        """
        needed = [loss for loss in self.losses if loss.needs_teacher]
        if self.teacher is None or not needed:
            return
        self.teacher.separate_from(student)
        layers = [layer for loss in needed for layer in loss.teacher_layers]
        self._taps = Taps(self.teacher.module, layers, "teacher") if layers else None

    def begin(self) -> None:
        """Begin to watch layers of the teacher."""
        if self._taps is not None:
            self._taps.attach()

    def end(self) -> None:
        """Leave no hook on the teacher."""
        if self._taps is not None:
            self._taps.remove()

    def distances(
        self,
        inputs: object,
        student_output: object,
        student_features: Mapping[str, object],
        teacher_output: object,
        padding_mask: torch.Tensor | None,
    ) -> list[torch.Tensor | None]:
        """Return the distance by each loss, 0-d; None for one that has none.

        Args:
            inputs: The batch, for the teacher.
            student_output: What the student returned for it.
            student_features: By name, what its layers returned.
            teacher_output: What the teacher returned for it, if that is known.
            padding_mask: ``[batch, position]``, nonzero at real tokens.

        Raises:
            ConfigError: A teacher is needed and there is none.
            ModelError: Outputs have the wrong form.
        """
        output, features = self._asked(inputs, teacher_output)
        return [
            loss.distance(
                _of_layers(student_features, loss.student_layers, student_output),
                _of_layers(features, loss.teacher_layers, output),
                padding_mask,
            )
            if loss.has_distance
            else None
            for loss in self.losses
        ]

    def _asked(self, inputs: object, known_output: object) -> tuple[object, Mapping[str, Any]]:
        """The teacher's output, and what its layers returned; it is run only if something of that is not known."""
        needed = [loss for loss in self.losses if loss.needs_teacher]
        lacks_features = any(loss.teacher_layers for loss in needed)
        if not needed or (known_output is not None and not lacks_features):
            return known_output, {}
        if self.teacher is None:
            message = (
                "Distillation has neither a teacher nor a teacher_output for this batch: expected one of them. Pass "
                "teacher_model to DistillationConfig, or the teacher's logits as teacher_output to "
                "on_after_compute_loss (which is not enough where intermediate layers are compared)."
            )
            raise ConfigError(message)
        with nullcontext() if self._taps is None else self._taps.listening():
            output = self.teacher(inputs)
        return (output if known_output is None else known_output), ({} if self._taps is None else self._taps.take())


def _of_layers(features: Mapping[str, object], layers: Sequence[str], output: object) -> object:
    return {layer: features[layer] for layer in layers} if layers else output
