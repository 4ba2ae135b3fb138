"""The configurations of distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, final

from torch import nn
from torch.optim import Optimizer

from inc_torch.config._base import Config, config, option, option_names
from inc_torch.config._checks import Place, choice, flag, items_of, number
from inc_torch.config._readonly import FrozenDict
from inc_torch.core.errors import did_you_mean
from inc_torch.distillers import KnowledgeDistillation
from inc_torch.distillers.losses.knowledge import HARD_TYPES, KL_REDUCTIONS, SOFT_TYPES

__all__ = ["DistillationConfig", "KnowledgeDistillationLossConfig"]

KLReduction = Literal["mean", "batchmean"]

_PAIR = 2
_WEIGHT_SUM_TOLERANCE = 1e-6
_KNOWLEDGE = "KnowledgeDistillationLoss"
_LATER = ("IntermediateLayersKnowledgeDistillationLoss", "SelfKnowledgeDistillationLoss")
_SGD = FrozenDict({"SGD": {"learning_rate": 0.0001}})


def _loss_types(value: object, place: Place) -> tuple[str, str]:
    listed = _pair(value, place, "a list of two loss names")
    return (
        choice(HARD_TYPES)(listed[0], place.item(0)),
        choice(SOFT_TYPES)(listed[1], place.item(1)),
    )


def _loss_weights(value: object, place: Place) -> tuple[float, float]:
    listed = _pair(value, place, "a list of two numbers")
    share = number("a number in [0, 1]", lambda x: 0 <= x <= 1)
    first, second = (share(entry, place.item(index)) for index, entry in enumerate(listed))
    if abs(first + second - 1) > _WEIGHT_SUM_TOLERANCE:
        raise place.error(value, "two weights that sum to 1", f" They sum to {first + second:g}.")
    return first, second


def _kl_reduction(value: object, place: Place) -> KLReduction:
    return "batchmean" if choice(KL_REDUCTIONS)(value, place) == "batchmean" else "mean"


def _pair(value: object, place: Place, want: str) -> list[object] | tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise place.type_error(value, want)
    if len(value) != _PAIR:
        hint = " The first is for the student's own loss, the second for the teacher."
        raise place.error(value, want, hint)
    return value


@final
@config
class KnowledgeDistillationLossConfig(Config):
    """Mix the student's own loss with its distance from the teacher's logits.

    ``loss = w0 * student_loss + w1 * T ** 2 * D(student / T, teacher / T)``

    Args:
        temperature: The ``T`` above, above 0. Greater values soften both distributions.
        loss_types: What measures the student against the labels (``"CE"`` or ``"MSE"``; of no effect in a training
            loop, whose student loss is already computed), and ``D``: ``"CE"``, ``"KL"`` or ``"MSE"``.
        loss_weights: ``w0`` and ``w1``, each in [0, 1], together 1. A zero saves the work for that part.
        kl_reduction: ``"mean"`` over all elements, as in INC, or ``"batchmean"``, the true divergence, which is
            as many times greater as there are classes. Not in INC.
        ignore_padding: For token-wise outputs: padded positions do not count. Not in INC.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> loss = KnowledgeDistillationLossConfig(temperature=2, loss_types=["CE", "KL"], loss_weights=[0.25, 0.75])
        >>> loss.to_spec().loss_weights, loss.config.KnowledgeDistillationLoss.temperature
        ((0.25, 0.75), 2.0)
    """

    temperature: float = option(number("a number above 0", lambda x: x > 0), default=1.0)
    loss_types: Sequence[str] = option(_loss_types, default=("CE", "CE"))
    loss_weights: Sequence[float] = option(_loss_weights, default=(0.5, 0.5))
    kl_reduction: KLReduction = option(_kl_reduction, default="mean", kw_only=True)
    ignore_padding: bool = option(flag, default=False, kw_only=True)

    @property
    def config(self) -> FrozenDict:
        """The values under the name of the loss, as INC keeps them; read-only."""
        return FrozenDict({_KNOWLEDGE: {name: getattr(self, name) for name in option_names(type(self))}})

    def to_spec(self) -> KnowledgeDistillation:
        """Return the same as typed values, for the layer below."""
        (hard, soft), (own, teacher) = self.loss_types, self.loss_weights
        return KnowledgeDistillation(
            self.temperature, (hard, soft), (own, teacher), self.kl_reduction, self.ignore_padding
        )


def _teacher(value: object, place: Place) -> nn.Module | None:
    """A module, or an object that holds one as ``model``, as INC's wrapper does."""
    if value is None or isinstance(value, nn.Module):
        return value
    inner = getattr(value, "model", None)
    if isinstance(inner, nn.Module):
        return inner
    hint = " Give an object, not its class." if isinstance(value, type) else ""
    raise place.type_error(value, "a torch.nn.Module, an object that holds one as .model, or None", hint)


def _criterion(value: object, place: Place) -> KnowledgeDistillationLossConfig:
    """A loss configuration, its class, its name, or INC 1.X's ``{name: options}``."""
    if isinstance(value, KnowledgeDistillationLossConfig):
        return value
    if value is KnowledgeDistillationLossConfig:
        return KnowledgeDistillationLossConfig()
    if isinstance(value, str):
        _loss_name(value, value, place)
        return KnowledgeDistillationLossConfig()
    if isinstance(value, Mapping):
        entries = items_of(value, place, "a dict")
        if len(entries) != 1:
            raise place.error(value, f"one entry, {{{_KNOWLEDGE!r}: {{...}}}}")
        ((name, options),) = entries.items()
        _loss_name(name, value, place)
        build: Callable[..., KnowledgeDistillationLossConfig] = KnowledgeDistillationLossConfig
        return build(**items_of(options or {}, place.item(name), "a dict of its options"))
    want = f"a KnowledgeDistillationLossConfig, its class, {_KNOWLEDGE!r} or {{{_KNOWLEDGE!r}: {{...}}}}"
    raise place.type_error(value, want)


def _loss_name(name: str, value: object, place: Place) -> None:
    short = name.removesuffix("Config")
    if short in _LATER:
        raise place.error(value, repr(_KNOWLEDGE), f" {short} comes with a later version of inc_torch.")
    if short != _KNOWLEDGE:
        raise place.error(value, repr(_KNOWLEDGE), did_you_mean(name, [_KNOWLEDGE]))


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
            a frozen copy then teaches. None where every call hands in precomputed teacher outputs.
        criterion: A `KnowledgeDistillationLossConfig`, or its class, its name or ``{name: options}``.
        optimizer: Stored, and never used: your training loop owns its optimizer, as it does with INC 2.X.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> DistillationConfig(criterion={"KnowledgeDistillationLoss": {"temperature": 4}}).criterion
        KnowledgeDistillationLossConfig(temperature=4.0)
    """

    teacher_model: nn.Module | None = option(_teacher, default=None)
    criterion: KnowledgeDistillationLossConfig = option(_criterion, default=KnowledgeDistillationLossConfig())
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
