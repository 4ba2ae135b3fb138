"""The configurations of distillation losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

from inc_torch.config._base import Config, config, option, option_names
from inc_torch.config._checks import Place, choice, flag, list_of, number, text
from inc_torch.config._readonly import FrozenDict
from inc_torch.distillers import (
    HARD_TYPES,
    KL_REDUCTIONS,
    SELF_TYPES,
    SOFT_TYPES,
    KnowledgeDistillation,
    SelfDistillation,
)

__all__ = ["KnowledgeDistillationLossConfig", "SelfKnowledgeDistillationLossConfig"]

KLReduction = Literal["mean", "batchmean"]

_PAIR = 2
_WEIGHT_SUM_TOLERANCE = 1e-6
_share = number("a number in [0, 1]", lambda x: 0 <= x <= 1)


def _loss_types(value: object, place: Place) -> tuple[str, str]:
    listed = _pair(value, place, "a list of two loss names")
    return (
        choice(HARD_TYPES)(listed[0], place.item(0)),
        choice(SOFT_TYPES)(listed[1], place.item(1)),
    )


def _loss_weights(value: object, place: Place) -> tuple[float, float]:
    listed = _pair(value, place, "a list of two numbers")
    first, second = (_share(entry, place.item(index)) for index, entry in enumerate(listed))
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
        return FrozenDict(
            {"KnowledgeDistillationLoss": {name: getattr(self, name) for name in option_names(type(self))}}
        )

    def to_spec(self) -> KnowledgeDistillation:
        """Return the same as typed values, for the layer below."""
        (hard, soft), (own, teacher) = self.loss_types, self.loss_weights
        return KnowledgeDistillation(
            self.temperature, (hard, soft), (own, teacher), self.kl_reduction, self.ignore_padding
        )


def _pair_of_names(value: object, place: Place) -> tuple[str, str]:
    want = "the names of two outputs: of the one that learns and of the one that it learns from"
    if not isinstance(value, (list, tuple)):
        hint = " A group is a list of pairs: [[[student, teacher]]] is one group with one pair."
        raise place.type_error(value, want, hint)
    if len(value) != _PAIR:
        raise place.error(value, want)
    first, second = (text(name, place.item(index)) for index, name in enumerate(value))
    return first, second


_groups = list_of("a list of groups, each a list of pairs of names", list_of("a list of pairs", _pair_of_names))


@final
@config
class SelfKnowledgeDistillationLossConfig(Config):
    """Let outputs of a model learn from another output of it, such as early exits from the last one.

    ``loss = sum_g w_g * sum_{(a, b) in g} D_g(outputs[a], outputs[b])``, where the model's output is a dict of tensors.

    Args:
        layer_mappings: Groups of pairs of names. None at all: every output learns from the last one of the same shape,
            and the student's own loss is added.
        temperature: Above 0; divides both outputs where ``D`` is ``"CE"`` or ``"KL"``.
        loss_types: ``D`` of each group: ``"CE"``, ``"KL"`` or ``"L2"``; none means ``"CE"`` for all.
        loss_weights: ``w`` of each group, in [0, 1]; none means equal ones that sum to 1.
        add_origin_loss: Add the student's own loss, which else does not count.
        inc_compat: Compute as INC 2.6.1 does, which counts the first of three groups three times, the second twice,
            and knows the temperature in the second alone.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> loss = SelfKnowledgeDistillationLossConfig([[["exit1", "exit3"], ["exit2", "exit3"]]], temperature=3)
        >>> loss.to_spec().loss_types, loss.to_spec().loss_weights
        (('CE',), (1.0,))
    """

    layer_mappings: Sequence[Sequence[Sequence[str]]] = option(_groups, default=())
    temperature: float = option(number("a number above 0", lambda x: x > 0), default=1.0)
    loss_types: Sequence[str] = option(list_of("a list of loss names", choice(SELF_TYPES)), default=())
    loss_weights: Sequence[float] = option(list_of("a list of numbers", _share), default=())
    add_origin_loss: bool = option(flag, default=False)
    inc_compat: bool = option(flag, default=False, kw_only=True)

    def _check_relations(self) -> None:
        groups = len(self.layer_mappings)
        for name in ("loss_types", "loss_weights"):
            given = getattr(self, name)
            if given and len(given) != groups:
                want = f"one for each of the {groups} groups in layer_mappings, or none"
                raise Place(type(self).__name__, name).error(given, want)

    @property
    def config(self) -> FrozenDict:
        """The values under the name of the loss, as INC keeps them; read-only."""
        return FrozenDict(
            {"SelfKnowledgeDistillationLoss": {name: getattr(self, name) for name in option_names(type(self))}}
        )

    def to_spec(self) -> SelfDistillation:
        """Return the same as typed values, for the layer below."""
        groups = tuple(tuple((first, second) for first, second in group) for group in self.layer_mappings)
        count = len(groups)
        return SelfDistillation(
            groups,
            tuple(self.loss_types) or ("CE",) * count,
            tuple(self.loss_weights) or (1 / count,) * count if count else (),
            self.temperature,
            self.add_origin_loss,
            self.inc_compat,
        )
