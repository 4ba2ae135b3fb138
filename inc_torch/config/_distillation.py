"""The configurations of distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

from torch import nn
from torch.optim import Optimizer

from inc_torch.config._base import Config, config, option
from inc_torch.config._checks import Place, items_of
from inc_torch.config._distillation_losses import KnowledgeDistillationLossConfig, SelfKnowledgeDistillationLossConfig
from inc_torch.config._readonly import FrozenDict
from inc_torch.core.errors import did_you_mean

__all__ = ["DistillationConfig"]

LossConfig = KnowledgeDistillationLossConfig | SelfKnowledgeDistillationLossConfig
_LOSSES: dict[str, type[KnowledgeDistillationLossConfig] | type[SelfKnowledgeDistillationLossConfig]] = {
    "KnowledgeDistillationLoss": KnowledgeDistillationLossConfig,
    "SelfKnowledgeDistillationLoss": SelfKnowledgeDistillationLossConfig,
}
_NAMES = list(_LOSSES)
_LATER = ("IntermediateLayersKnowledgeDistillationLoss",)
_SGD = FrozenDict({"SGD": {"learning_rate": 0.0001}})


def _teacher(value: object, place: Place) -> nn.Module | None:
    """A module, or an object that holds one as ``model``, as INC's wrapper does."""
    if value is None or isinstance(value, nn.Module):
        return value
    inner = getattr(value, "model", None)
    if isinstance(inner, nn.Module):
        return inner
    hint = " Give an object, not its class." if isinstance(value, type) else ""
    raise place.type_error(value, "a torch.nn.Module, an object that holds one as .model, or None", hint)


def _criterion(value: object, place: Place) -> LossConfig:
    """A loss configuration, its class, its name, or INC 1.X's ``{name: options}``."""
    if isinstance(value, LossConfig):
        return value
    if isinstance(value, type) and issubclass(value, LossConfig):
        return value()
    if isinstance(value, str):
        return _loss(value, value, place)()
    if isinstance(value, Mapping):
        entries = items_of(value, place, "a dict")
        if len(entries) != 1:
            raise place.error(value, f"one entry, {{{_NAMES[0]!r}: {{...}}}}")
        ((name, options),) = entries.items()
        build: Callable[..., LossConfig] = _loss(name, value, place)
        return build(**items_of(options or {}, place.item(name), "a dict of its options"))
    want = f"a {_NAMES[0]}Config, its class, {_NAMES[0]!r} or {{{_NAMES[0]!r}: {{...}}}}"
    raise place.type_error(value, want)


def _loss(name: str, value: object, place: Place) -> Callable[[], LossConfig]:
    short = name.removesuffix("Config")
    want = f"one of {', '.join(map(repr, _NAMES))}"
    if short in _LATER:
        raise place.error(value, want, f" {short} comes with a later version of inc_torch.")
    if short not in _LOSSES:
        raise place.error(value, want, did_you_mean(name, _NAMES))
    return _LOSSES[short]


def _optimizer(value: object, place: Place) -> object:
    """A name, INC's ``{name: options}``, a class or an object of torch's."""
    if isinstance(value, Mapping):
        return FrozenDict(items_of(value, place, "a dict"))
    if isinstance(value, (str, Optimizer)) or (isinstance(value, type) and issubclass(value, Optimizer)):
        return value
    raise place.type_error(value, "a name, {name: options}, a torch.optim class or an optimizer")


@final
@config
class DistillationConfig(Config):
    """Train a student with the help of a teacher.

    Args:
        teacher_model: The teacher, or an object that holds it as ``model``. It may be the student itself, of which
            a frozen copy then teaches. None where every call hands in precomputed teacher outputs, and for
            self-distillation.
        criterion: A `KnowledgeDistillationLossConfig` or `SelfKnowledgeDistillationLossConfig`, or its class, its name
            or ``{name: options}``.
        optimizer: Stored, and never used: your training loop owns its optimizer, as it does with INC 2.X.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> DistillationConfig(criterion={"KnowledgeDistillationLoss": {"temperature": 4}}).criterion
        KnowledgeDistillationLossConfig(temperature=4.0)
    """

    teacher_model: nn.Module | None = option(_teacher, default=None)
    criterion: LossConfig = option(_criterion, default=KnowledgeDistillationLossConfig())
    optimizer: object = option(_optimizer, default=_SGD)

    def _encode(self, name: str) -> object:
        if name == "teacher_model":
            return None if self.teacher_model is None else type(self.teacher_model).__name__
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
            return f"<{type(self.teacher_model).__name__}>"
        return repr(getattr(self, name))
