"""The configurations of distillation losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from inc_torch.config._base import Config, config, option, option_names
from inc_torch.config._checks import Place, choice, flag, list_of, number, text
from inc_torch.config._readonly import FrozenDict
from inc_torch.distillers import (
    FEATURE_TYPES,
    HARD_TYPES,
    KL_REDUCTIONS,
    SELF_TYPES,
    SOFT_TYPES,
    FeatureDistillation,
    FeaturePair,
    KnowledgeDistillation,
    Selection,
    SelfDistillation,
    Tap,
)

__all__ = [
    "IntermediateLayersKnowledgeDistillationLossConfig",
    "KnowledgeDistillationLossConfig",
    "SelfKnowledgeDistillationLossConfig",
]

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


def _named_as_inc_does(loss: str, options: Config) -> FrozenDict:
    return FrozenDict({loss: {name: getattr(options, name) for name in option_names(type(options))}})


def _require_one_each(options: Config, count: int, what: str) -> None:
    """Lists that go with ``layer_mappings`` have its length, or are empty."""
    for name in ("loss_types", "loss_weights"):
        given = getattr(options, name)
        if given and len(given) != count:
            want = f"one for each of the {count} {what} in layer_mappings, or none"
            raise Place(type(options).__name__, name).error(given, want)


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
            loop, whose student loss is already computed), and ``D``: ``"CE"``, ``"KL"`` or ``"MSE"``. Not in INC:
            ``"L1"`` and ``"cosine"``, in place of ``T ** 2 * D`` the mean absolute difference of the logits and one
            minus the cosine of the angle between them.
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
        return _named_as_inc_does("KnowledgeDistillationLoss", self)

    def to_spec(self) -> KnowledgeDistillation:
        """Return the same as typed values, for the layer below."""
        (hard, soft), (own, teacher) = self.loss_types, self.loss_weights
        return KnowledgeDistillation(
            self.temperature, (hard, soft), (own, teacher), self.kl_reduction, self.ignore_padding
        )


Side = tuple[str, Selection]
_ENTRY = (
    "a layer for both models, or a pair of layers (student, teacher); a layer is a name, or [name] or "
    "[name, part], where part is a key, an index or a function of the layer's output"
)


def _sides(value: object, place: Place) -> tuple[Side, Side]:
    """An entry of ``layer_mappings`` as the two places that it compares."""
    sides = (value,) if isinstance(value, str) else value
    if not isinstance(sides, (list, tuple)):
        raise place.type_error(value, _ENTRY)
    if not 0 < len(sides) <= _PAIR:
        raise place.error(value, _ENTRY)
    if not isinstance(sides[-1], (str, list, tuple)):
        hint = f" For a part of one layer write one list more: [[{sides[0]!r}, {sides[-1]!r}]]."
        raise place.error(value, _ENTRY, hint)
    parsed = [_side(side, place.item(index)) for index, side in enumerate(sides)]
    return parsed[0], parsed[-1]


def _side(value: object, place: Place) -> Side:
    parts = (value,) if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise place.type_error(value, _ENTRY)
    if not 0 < len(parts) <= _PAIR:
        raise place.error(value, _ENTRY)
    selection = parts[1] if len(parts) == _PAIR else None
    is_part = selection is None or callable(selection) or isinstance(selection, (str, int))
    if isinstance(selection, Mapping) and selection.keys() == {_FUNCTION}:
        hint = " A function cannot be read from a file: give it again with replace(layer_mappings=...)."
        raise place.error(value, _ENTRY, hint)
    if not is_part or isinstance(selection, bool):
        raise place.item(1).type_error(selection, "a key, an index or a function of the layer's output")
    return text(parts[0], place.item(0)), None if selection == "" else selection


_FUNCTION = "function"
_mappings = list_of("a list of entries, each " + _ENTRY, _sides)


@final
@config
class IntermediateLayersKnowledgeDistillationLossConfig(Config):
    """Let layers of the student compute what layers of the teacher do.

    ``loss = sum_i w_i * D_i(M_i(student_i), teacher_i)``, plus the student's own loss with ``add_origin_loss``.

    Args:
        layer_mappings: What is compared; at least one entry. ``"a.b"``, ``["a.b"]`` or ``[["a.b"]]`` is a module of
            that name in both models; ``["s", "t"]`` one of the student and one of the teacher. For a part of what a
            module returns, ``[["s", part], ["t", part]]``: a key, an index, several joined by dots
            (``"hidden_states.3"``), or a function. ``""`` is the model itself.
        loss_types: ``D`` of each entry: ``"MSE"``, ``"KL"``, ``"L1"``, and not in INC ``"cosine"`` and ``"attention"``
            (attention transfer, arXiv:1612.03928); none means ``"MSE"`` for all.
        loss_weights: ``w`` of each entry, in [0, 1]; none means equal ones that sum to 1.
        add_origin_loss: Add the student's own loss, which else does not count.
        kl_reduction: ``"mean"`` over all elements, as in INC, or ``"batchmean"``.
        ignore_padding: Of features ``[batch, position, size]`` padded positions do not count. Not in INC.
        projection_learning_rate: ``M`` is a linear layer where features differ in the size of one axis. It learns
            with AdamW, beside the student and at the pace of your scheduler; 0 leaves it random, as INC does.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> loss = IntermediateLayersKnowledgeDistillationLossConfig(
        ...     [["encoder.0"], ["encoder.1", "encoder.3"]], loss_types=["MSE", "cosine"]
        ... )
        >>> [str(pair.teacher) for pair in loss.to_spec().pairs]
        ["'encoder.0'", "'encoder.3'"]
    """

    layer_mappings: Sequence[Any] = option(_mappings, default=())
    loss_types: Sequence[str] = option(list_of("a list of loss names", choice(FEATURE_TYPES)), default=())
    loss_weights: Sequence[float] = option(list_of("a list of numbers", _share), default=())
    add_origin_loss: bool = option(flag, default=False)
    kl_reduction: KLReduction = option(_kl_reduction, default="mean", kw_only=True)
    ignore_padding: bool = option(flag, default=False, kw_only=True)
    projection_learning_rate: float = option(
        number("a number of at least 0", lambda x: x >= 0), default=1e-3, kw_only=True
    )

    def _check_relations(self) -> None:
        if not self.layer_mappings:
            hint = " For example [['encoder.layer.0', 'encoder.layer.1']]."
            raise Place(type(self).__name__, "layer_mappings").error(self.layer_mappings, "at least one entry", hint)
        _require_one_each(self, len(self.layer_mappings), "entries")

    def _encode(self, name: str) -> object:
        if name == "layer_mappings":
            return [[[layer, _plain_part(part)] for layer, part in sides] for sides in self.layer_mappings]
        return Config._encode(self, name)

    @property
    def config(self) -> FrozenDict:
        """The values under the name of the loss, as INC keeps them; read-only."""
        return _named_as_inc_does("IntermediateLayersKnowledgeDistillationLoss", self)

    def to_spec(self) -> FeatureDistillation:
        """Return the same as typed values, for the layer below."""
        count = len(self.layer_mappings)
        pairs = [
            FeaturePair(Tap(*student), Tap(*teacher), kind, weight)
            for (student, teacher), kind, weight in zip(
                self.layer_mappings,
                self.loss_types or ("MSE",) * count,
                self.loss_weights or (1 / count,) * count,
                strict=True,
            )
        ]
        return FeatureDistillation(
            pairs,
            add_origin_loss=self.add_origin_loss,
            kl_reduction=self.kl_reduction,
            ignore_padding=self.ignore_padding,
            learning_rate=self.projection_learning_rate,
        )


def _plain_part(part: Selection) -> object:
    """A part as JSON can hold it; of a function the name, for people to read."""
    return {_FUNCTION: getattr(part, "__qualname__", repr(part))} if callable(part) else part


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
        _require_one_each(self, len(self.layer_mappings), "groups")

    @property
    def config(self) -> FrozenDict:
        """The values under the name of the loss, as INC keeps them; read-only."""
        return _named_as_inc_does("SelfKnowledgeDistillationLoss", self)

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
