"""Distillation losses as objects that can be called, under INC 1.X's names.

Given to a `inc_torch.experimental.Distillation` as ``criterion``, or to `inc_torch.DistillationConfig`, they say what
the configurations in `inc_torch.config` say. In a loop of one's own they compute, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, final

import torch
from torch import nn

from inc_torch.callbacks import DistillationCallbacks
from inc_torch.config import (
    IntermediateLayersKnowledgeDistillationLossConfig,
    KnowledgeDistillationLossConfig,
    SelfKnowledgeDistillationLossConfig,
)
from inc_torch.core.errors import ConfigError
from inc_torch.core.frameworks import check_framework
from inc_torch.distillers import Teacher

__all__ = [
    "Criterions",
    "PyTorchIntermediateLayersKnowledgeDistillationLoss",
    "PyTorchKnowledgeDistillationLoss",
    "PyTorchSelfKnowledgeDistillationLoss",
]

LossConfig = (
    KnowledgeDistillationLossConfig
    | IntermediateLayersKnowledgeDistillationLossConfig
    | SelfKnowledgeDistillationLossConfig
)


class _Criterion:
    """A loss that knows its configuration, and its models if it has to compute by itself."""

    name: ClassVar[str]

    def __init__(self, config: LossConfig, student_model: nn.Module | None, teacher_model: nn.Module | None) -> None:
        self.loss_config = config
        self.student_model, self.teacher_model = student_model, teacher_model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.loss_config!r})"

    def __call__(self, student_output: object, targets: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return 0: what is compared are no labels."""
        return torch.zeros(())

    def teacher_model_forward(
        self,
        input: object,  # noqa: A002  INC's name
        teacher_model: nn.Module | None = None,
        device: str | torch.device | None = None,
    ) -> Any:  # noqa: ANN401  whatever the teacher returns
        """Return what the teacher says of a batch, without gradients; see `inc_torch.distillers.Teacher`.

        Args:
            input: The batch.
            teacher_model: Asked in place of the one that is known.
            device: Where the teacher is to be.

        Raises:
            ConfigError: There is no teacher.
        """
        teacher = teacher_model or self.teacher_model
        if teacher is None:
            message = f"{type(self).__name__} has no teacher: give it teacher_model."
            raise ConfigError(message)
        return Teacher(teacher if device is None else teacher.to(device))(input)


@final
class PyTorchKnowledgeDistillationLoss(_Criterion):
    """The loss of `inc_torch.KnowledgeDistillationLossConfig`.

    Args:
        temperature: See there; so are ``loss_types`` and ``loss_weights``.
        loss_types: The first is what calling the object computes of outputs and labels.
        loss_weights: Of the loss against labels, and of the distance to the teacher.
        student_model: Kept for the user.
        teacher_model: Asked by `teacher_model_forward`.

    Example:
        >>> criterion = PyTorchKnowledgeDistillationLoss(loss_types=["CE", "MSE"], loss_weights=[0.25, 0.75])
        >>> student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
        >>> criterion.loss_cal_sloss(student, teacher, torch.tensor(4.0))  # 0.25 * 4 + 0.75 * (0 + 4) / 2
        tensor(2.5000)

    Source: INC 2.6.1, of the same name.
    """

    name = "KnowledgeDistillationLoss"

    def __init__(
        self,
        temperature: float = 1.0,
        loss_types: Sequence[str] = ("CE", "CE"),
        loss_weights: Sequence[float] = (0.5, 0.5),
        student_model: nn.Module | None = None,
        teacher_model: nn.Module | None = None,
    ) -> None:
        config = KnowledgeDistillationLossConfig(temperature, loss_types, loss_weights)
        super().__init__(config, student_model, teacher_model)
        self._loss = config.to_spec()
        self.temperature, self.loss_types, self.loss_weights = (
            config.temperature,
            config.loss_types,
            config.loss_weights,
        )

    def __call__(self, student_output: object, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss against labels."""
        return self._loss.hard_loss(student_output, targets)

    loss_cal = student_targets_loss_cal = __call__

    def teacher_student_loss_cal(self, student_output: object, teacher_output: object) -> torch.Tensor:
        """Return the distance to the teacher, before weighting."""
        return self._loss.distance(student_output, teacher_output)

    def loss_cal_sloss(
        self, student_output: object, teacher_output: object, student_loss: torch.Tensor | float
    ) -> torch.Tensor:
        """Return both, weighted; the loss against labels is given."""
        return self._loss.combine(student_output, teacher_output, student_loss)


class _Listening(_Criterion):
    """A loss that looks at layers: it listens to the models as soon as it is to compute."""

    def __init__(self, config: LossConfig, student_model: nn.Module | None, teacher_model: nn.Module | None) -> None:
        super().__init__(config, student_model, teacher_model)
        self._run: DistillationCallbacks | None = None
        self._input: object = None

    def _listening(self) -> DistillationCallbacks:
        """What has its hooks on the models, which `remove_all_hooks` takes away again."""
        if self._run is None:
            if self.student_model is None:
                message = f"{type(self).__name__} has no student: give it student_model, and teacher_model."
                raise ConfigError(message)
            self._run = DistillationCallbacks(
                self.loss_config.to_spec(), self.teacher_model, student=self.student_model
            )
            self._run.on_train_begin()
        return self._run

    def teacher_model_forward(
        self,
        input: object,  # noqa: A002  INC's name
        teacher_model: nn.Module | None = None,
        device: str | torch.device | None = None,
    ) -> Any:  # noqa: ANN401
        """Remember the batch: the teacher is asked when its layers are compared."""
        self._input = input
        self._listening()
        return super().teacher_model_forward(input, teacher_model, device)

    def loss_cal_sloss(
        self, student_output: object, teacher_output: object, student_loss: torch.Tensor | float
    ) -> torch.Tensor:
        """Return the weighted distances, with ``student_loss`` if that is to count."""
        return self._listening().on_after_compute_loss(self._input, student_output, student_loss, teacher_output)

    def clear_features(self) -> None:
        """Forget what layers returned; called before each batch."""
        if self._run is not None:
            self._run.on_step_begin(0)

    def remove_all_hooks(self) -> None:
        """Listen no longer."""
        if self._run is not None:
            self._run.on_train_end()
            self._run = None


@final
class PyTorchIntermediateLayersKnowledgeDistillationLoss(_Listening):
    """The loss of `inc_torch.IntermediateLayersKnowledgeDistillationLossConfig`.

    Args:
        layer_mappings: See there; so are the next three.
        loss_types: Of each mapping.
        loss_weights: Of each mapping.
        add_origin_loss: Whether the loss of the task counts.
        student_model: Needed to compute; a `inc_torch.experimental.Distillation` has its own.
        teacher_model: The same.

    Source: INC 2.6.1, of the same name; differs in that hooks are put on when it first computes, and not before.
    """

    name = "IntermediateLayersKnowledgeDistillationLoss"

    def __init__(
        self,
        layer_mappings: Sequence[Any] = (),
        loss_types: Sequence[str] | None = None,
        loss_weights: Sequence[float] | None = None,
        add_origin_loss: bool = False,
        student_model: nn.Module | None = None,
        teacher_model: nn.Module | None = None,
    ) -> None:
        config = IntermediateLayersKnowledgeDistillationLossConfig(
            layer_mappings, loss_types or (), loss_weights or (), add_origin_loss
        )
        super().__init__(config, student_model, teacher_model)


@final
class PyTorchSelfKnowledgeDistillationLoss(_Listening):
    """The loss of `inc_torch.SelfKnowledgeDistillationLossConfig`; no teacher is asked.

    Args:
        layer_mappings: See there; so are the next four.
        loss_types: Of each group.
        loss_weights: Of each group.
        temperature: Of soft distances.
        add_origin_loss: Whether the loss of the task counts.
        student_model: Needed to compute; a `inc_torch.experimental.Distillation` has its own.
        teacher_model: Kept, and never asked.

    Source: INC 2.6.1, of the same name; differs in what `inc_torch.SelfKnowledgeDistillationLossConfig` says.
    """

    name = "SelfKnowledgeDistillationLoss"

    def __init__(
        self,
        layer_mappings: Sequence[Any] = (),
        loss_types: Sequence[str] | None = None,
        loss_weights: Sequence[float] | None = None,
        temperature: float = 1.0,
        add_origin_loss: bool = False,
        student_model: nn.Module | None = None,
        teacher_model: nn.Module | None = None,
    ) -> None:
        config = SelfKnowledgeDistillationLossConfig(
            layer_mappings=layer_mappings,
            temperature=temperature,
            loss_types=loss_types or (),
            loss_weights=loss_weights or (),
            add_origin_loss=add_origin_loss,
        )
        super().__init__(config, student_model, teacher_model)


Criterion = (
    PyTorchKnowledgeDistillationLoss
    | PyTorchIntermediateLayersKnowledgeDistillationLoss
    | PyTorchSelfKnowledgeDistillationLoss
)
_CLASSES: Final[Mapping[str, Callable[..., Any]]] = {
    kind.name: kind
    for kind in (
        PyTorchKnowledgeDistillationLoss,
        PyTorchIntermediateLayersKnowledgeDistillationLoss,
        PyTorchSelfKnowledgeDistillationLoss,
    )
} | {"CrossEntropyLoss": nn.CrossEntropyLoss}


@final
class Criterions:
    """Losses by the name that they have in 1.X files.

    Args:
        framework: Of INC's names for PyTorch.

    Example:
        >>> Criterions("pytorch")["KnowledgeDistillationLoss"]({"temperature": 2.0}).temperature
        2.0

    Source: INC 2.6.1 ``Criterions``.
    """

    def __init__(self, framework: str = "pytorch") -> None:
        check_framework(type(self).__name__, framework)

    def __getitem__(self, name: str) -> Callable[[Mapping[str, Any]], Any]:
        if name not in _CLASSES:
            raise ConfigError.field(type(self).__name__, "name", name, f"one of {', '.join(_CLASSES)}")
        return lambda options: _CLASSES[name](**options)
