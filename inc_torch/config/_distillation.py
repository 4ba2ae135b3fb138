"""The configurations of distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

from torch import nn
from torch.optim import Optimizer

from inc_torch.config._base import Config, config, is_described, option
from inc_torch.config._checks import Place, integer, items_of, optional
from inc_torch.config._distillation_losses import (
    IntermediateLayersKnowledgeDistillationLossConfig,
    KnowledgeDistillationLossConfig,
    SelfKnowledgeDistillationLossConfig,
)
from inc_torch.config._readonly import FrozenDict
from inc_torch.core.errors import did_you_mean
from inc_torch.distillers import DistillationLoss

__all__ = ["DistillationConfig"]

LossConfig = (
    KnowledgeDistillationLossConfig
    | IntermediateLayersKnowledgeDistillationLossConfig
    | SelfKnowledgeDistillationLossConfig
)
Criterion = LossConfig | DistillationLoss
_LOSSES: dict[str, Callable[..., LossConfig]] = {
    "KnowledgeDistillationLoss": KnowledgeDistillationLossConfig,
    "IntermediateLayersKnowledgeDistillationLoss": IntermediateLayersKnowledgeDistillationLossConfig,
    "SelfKnowledgeDistillationLoss": SelfKnowledgeDistillationLossConfig,
}
_NAMES = list(_LOSSES)
_SGD = FrozenDict({"SGD": {"learning_rate": 0.0001}})


def _teachers(value: object, place: Place) -> nn.Module | tuple[nn.Module, ...] | None:
    """A teacher, several, or None."""
    if isinstance(value, (list, tuple)):
        return tuple(_teacher(one, place.item(index)) for index, one in enumerate(value)) or None
    return None if value is None else _teacher(value, place)


def _teacher(value: object, place: Place) -> nn.Module:
    """A module, or an object that holds one as ``model``, as INC's wrapper does."""
    if isinstance(value, nn.Module):
        return value
    inner = getattr(value, "model", None)
    if isinstance(inner, nn.Module):
        return inner
    hint = " Give an object, not its class." if isinstance(value, type) else ""
    raise place.type_error(value, "a torch.nn.Module, an object that holds one as .model, a list of them or None", hint)


def _criteria(value: object, place: Place) -> Criterion | tuple[Criterion, ...]:
    """A criterion, or several."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise place.error(value, "at least one criterion")
        return tuple(_criterion(one, place.item(index)) for index, one in enumerate(value))
    return _criterion(value, place)


def _criterion(value: object, place: Place) -> Criterion:
    """A loss configuration, its class, its name, INC 1.X's ``{name: options}``, or a loss of the user."""
    if isinstance(value, Criterion):
        return value
    said = getattr(value, "loss_config", None)  # by a criterion of inc_torch.experimental.common
    if isinstance(said, LossConfig):
        return said
    if isinstance(value, type) and issubclass(value, LossConfig):
        return value()
    if isinstance(value, str):
        return _loss(value, value, place)()
    if isinstance(value, Mapping):
        if is_described(value):
            return _criterion(Config.from_dict(value), place)
        entries = items_of(value, place, "a dict")
        if len(entries) != 1:
            raise place.error(value, f"one entry, {{{_NAMES[0]!r}: {{...}}}}")
        ((name, options),) = entries.items()
        return _loss(name, value, place)(**items_of(options or {}, place.item(name), "a dict of its options"))
    want = (
        f"a {_NAMES[0]}Config, its class, {_NAMES[0]!r} or {{{_NAMES[0]!r}: {{...}}}}, an object of a class derived "
        "from inc_torch.distillers.DistillationLoss, or a list of these"
    )
    raise place.type_error(value, want)


def _loss(name: str, value: object, place: Place) -> Callable[..., LossConfig]:
    short = name.removesuffix("Config")
    if short not in _LOSSES:
        raise place.error(value, f"one of {', '.join(map(repr, _NAMES))}", did_you_mean(name, _NAMES))
    return _LOSSES[short]


def _optimizer(value: object, place: Place) -> object:
    """A name, INC's ``{name: options}``, a class or an object of torch's."""
    if isinstance(value, Mapping):
        return FrozenDict(items_of(value, place, "a dict"))
    if isinstance(value, (str, Optimizer)) or (isinstance(value, type) and issubclass(value, Optimizer)):
        return value
    raise place.type_error(value, "a name, {name: options}, a torch.optim class or an optimizer")


_step = integer("a number of optimizer steps, at least 0", lambda x: x >= 0)


@final
@config
class DistillationConfig(Config):
    """Train a student with the help of a teacher.

    Args:
        teacher_model: The teacher, or an object that holds it as ``model``. It may be the student itself, of which
            a frozen copy then teaches. None where every call hands in precomputed teacher outputs, and for
            self-distillation. Of a list of teachers the distances are averaged (not in INC).
        criterion: A `KnowledgeDistillationLossConfig`, `IntermediateLayersKnowledgeDistillationLossConfig` or
            `SelfKnowledgeDistillationLossConfig`, or its class, its name or ``{name: options}``. Not in INC: an object
            of a class of yours that is derived from `inc_torch.distillers.DistillationLoss`; or a list of criteria, of
            which the first mixes with the loss of the task, and each further one with what came out before.
        optimizer: Stored, and never used: your training loop owns its optimizer, as it does with INC 2.X.
        start_step: The teacher has its say from this optimizer step on. Not in INC.
        end_step: And until before this one; None is to the end. Not in INC.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> DistillationConfig(criterion={"KnowledgeDistillationLoss": {"temperature": 4}}).criterion
        KnowledgeDistillationLossConfig(temperature=4.0)
    """

    teacher_model: nn.Module | Sequence[nn.Module] | None = option(_teachers, default=None)
    criterion: Criterion | Sequence[Criterion] = option(_criteria, default=KnowledgeDistillationLossConfig())
    optimizer: object = option(_optimizer, default=_SGD)
    start_step: int = option(_step, default=0, kw_only=True)
    end_step: int | None = option(optional(_step), default=None, kw_only=True)

    def _check_relations(self) -> None:
        if self.end_step is not None and self.end_step <= self.start_step:
            want = f"a step after start_step={self.start_step}, or None"
            raise Place(type(self).__name__, "end_step").error(self.end_step, want)

    def to_losses(self) -> tuple[DistillationLoss, ...]:
        """The criteria as objects that compute; what comes after the first is added to what came out before."""
        first, *others = self.criterion if isinstance(self.criterion, Sequence) else (self.criterion,)
        return (_to_loss(first), *(_to_loss(_adding(one)) for one in others))

    def _encode(self, name: str) -> object:
        if name == "teacher_model":
            if isinstance(self.teacher_model, Sequence):
                return [type(one).__name__ for one in self.teacher_model]
            return None if self.teacher_model is None else type(self.teacher_model).__name__
        if name == "criterion":
            if isinstance(self.criterion, Sequence):
                return [_described(one) for one in self.criterion]
            return _described(self.criterion)
        if name == "optimizer" and not isinstance(self.optimizer, (str, Mapping)):
            kind = self.optimizer if isinstance(self.optimizer, type) else type(self.optimizer)
            return kind.__name__
        return Config._encode(self, name)

    @classmethod
    def _options_in(cls, data: Mapping[str, object]) -> Mapping[str, object]:
        # The teacher's class name is there for people to read; the teacher itself is handed in again.
        return {name: value for name, value in data.items() if name != "teacher_model"}

    def _shown(self, name: str) -> str:
        if name == "teacher_model":
            several = isinstance(self.teacher_model, Sequence)
            shown = self._encode(name)
            return f"<{', '.join(shown) if several and isinstance(shown, list) else shown}>"
        return repr(getattr(self, name))


def _to_loss(criterion: Criterion) -> DistillationLoss:
    return criterion if isinstance(criterion, DistillationLoss) else criterion.to_spec()


def _adding(criterion: Criterion) -> Criterion:
    """The same, for one that would drop what came before."""
    if isinstance(criterion, (DistillationLoss, KnowledgeDistillationLossConfig)):
        return criterion
    return criterion.replace(add_origin_loss=True)


def _described(criterion: Criterion) -> object:
    return type(criterion).__name__ if isinstance(criterion, DistillationLoss) else criterion.to_dict()
