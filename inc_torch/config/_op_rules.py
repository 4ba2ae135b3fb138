"""``op_type_dict`` and ``op_name_dict``: which modules are quantized how, from INC's words to rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, Protocol, final

from inc_torch.config._checks import Check, Place, integer, items_of, list_of, text
from inc_torch.config._readonly import FrozenDict
from inc_torch.core.errors import did_you_mean
from inc_torch.precision import PrecisionRule
from inc_torch.quantizers import OBSERVERS, Codes, FloatType, QuantRule, QuantSpec, Scheme, WeightOnlyScheme

__all__ = [
    "DEFAULT_RULE",
    "MIXED_PRECISION",
    "POST_TRAINING",
    "TRAINING",
    "WEIGHT_ONLY",
    "WEIGHT_ONLY_NUMBERS",
    "RuleWords",
    "check_rules",
    "precision_rules",
    "rules_of",
    "spec_of",
]

DEFAULT_RULE = "default_qconfig"
"""Key of ``op_name_dict`` that in INC speaks of operations that are no modules of their own, such as additions."""

_FLOATS = {"fp32": FloatType.FLOAT32, "bf16": FloatType.BFLOAT16}
_BITS = {"int8": 8, "int4": 4}
_FLOAT_CODES: Mapping[str, Codes] = {
    "nf4": "nf4",
    "fp4": "fp4_e2m1_bnb",
    "fp4_e2m1_bnb": "fp4_e2m1_bnb",
    "fp4_e2m1": "fp4_e2m1",
}


@final
@dataclass(frozen=True, slots=True)
class _Words:
    """The words of one key: what we can do, and what INC knows besides."""

    offered: tuple[str, ...] | Callable[[], tuple[str, ...]]
    elsewhere: tuple[str, ...] = ()
    why: str = ""

    @property
    def known(self) -> tuple[str, ...]:
        return self.offered() if callable(self.offered) else self.offered


RuleWords = Mapping[str, Mapping[str, _Words]]
"""By side of a rule, ``"weight"`` or ``"activation"``, and key."""

_WEIGHT_SCHEME = _Words(("sym",), ("asym", "asym_float"), " Weights are symmetric, so that a pruned zero stays zero.")
_INPUT_GRANULARITY = _Words(("per_tensor",), ("per_channel",), " The int8 kernels take one input scale a tensor.")
_WEIGHT_ONLY = ("RTN", "AWQ", "GPTQ", "TEQ", "AUTOROUND")
_LOW_BITS = ("uint8", "int", "nf4", "fp4", "fp4_e2m1_bnb", "fp4_e2m1")

TRAINING: RuleWords = {
    "weight": {
        "dtype": _Words(
            ("int8", "int4", "fp32", "bf16"),
            (*_LOW_BITS, "fp16"),
            " Quantization-aware training makes int8 weights; 'fp32' leaves the module in float.",
        ),
        "scheme": _WEIGHT_SCHEME,
        "granularity": _Words(("per_channel", "per_tensor")),
        "algorithm": _Words(("minmax",), _WEIGHT_ONLY, " The others need no training and learn nothing."),
    },
    "activation": {
        "dtype": _Words(
            ("uint8", "int8", "fp32", "bf16"),
            ("fp16", "None"),
            " Quantization-aware training makes 8-bit inputs; 'fp32' leaves the module in float.",
        ),
        "scheme": _Words(("asym", "sym")),
        "granularity": _INPUT_GRANULARITY,
        "algorithm": _Words(
            ("minmax",), ("kl", "percentile", "placeholder"), " The others calibrate models that are not trained."
        ),
    },
}
"""Rules of quantization-aware training."""

POST_TRAINING: RuleWords = {
    "weight": {
        "dtype": _Words(
            ("int8", "int4", "fp32", "bf16"),
            (*_LOW_BITS, "fp16"),
            " Weights become int8, or int4 in int8; 'fp32' and 'bf16' leave the module in float.",
        ),
        "scheme": _WEIGHT_SCHEME,
        "granularity": _Words(("per_channel", "per_tensor")),
        "algorithm": _Words(("minmax",), _WEIGHT_ONLY, " The others belong to approach='weight_only'."),
    },
    "activation": {
        "dtype": _Words(
            ("uint8", "int8", "fp32", "bf16"),
            ("fp16", "None"),
            " Inputs take 8 bits; 'fp32' and 'bf16' leave the module in float.",
        ),
        "scheme": _Words(("asym", "sym")),
        "granularity": _INPUT_GRANULARITY,
        "algorithm": _Words(lambda: tuple(OBSERVERS.names()), ("placeholder",), " Leave the algorithm out for float."),
    },
}
"""Rules of post-training quantization."""

WEIGHT_ONLY: RuleWords = {
    "weight": {
        "dtype": _Words(
            ("int", "int4", "int8", *_FLOAT_CODES, "fp32", "bf16"),
            ("uint8", "fp16"),
            " Weights become integers of 2 to 8 bits, or numbers from a table of 4 bits.",
        ),
        "scheme": _Words(("sym", "asym"), ("asym_float",), " Zero points are integers."),
        "algorithm": _Words(
            ("RTN", "GPTQ", "AWQ", "TEQ"), _WEIGHT_ONLY, " AutoRound is a package of its own: take GPTQ or AWQ."
        ),
    },
    "activation": {
        "dtype": _Words(
            ("fp32", "bf16"),
            ("uint8", "int8", "fp16", "None"),
            " approach='weight_only' leaves inputs in float: leave this side of the rule out. 'fp32' and 'bf16' leave "
            "the weight in float too.",
        ),
    },
}
"""Rules of weights alone."""

_PRECISIONS = _Words(
    ("fp32", "bf16", "fp16"),
    ("int8", "uint8", *_LOW_BITS, "int4", "None"),
    " Mixed precision makes floats only; for integers there is quantization.fit with PostTrainingQuantConfig.",
)
MIXED_PRECISION: RuleWords = {"weight": {"dtype": _PRECISIONS}, "activation": {"dtype": _PRECISIONS}}
"""Rules of mixed precision."""

Numbers = Mapping[str, Check[int]]
"""Keys of the side ``"weight"`` whose values are numbers."""

_BITS_OF_CODES = integer("an integer from 2 to 8", lambda x: 2 <= x <= 8)  # noqa: PLR2004  what the message says
_INT8_NUMBERS: Numbers = {
    "bits": _BITS_OF_CODES,
    "group_size": integer("-1: only approach='weight_only' makes groups", lambda x: x == -1),
}
WEIGHT_ONLY_NUMBERS: Numbers = {
    "bits": _BITS_OF_CODES,
    "group_size": integer("-1, which is a whole row, or an integer above 0", lambda x: x == -1 or x >= 1),
}


def check_rules(words: RuleWords, numbers: Numbers = _INT8_NUMBERS) -> Check[FrozenDict]:
    """Check ``{pattern: {"weight": {...}, "activation": {...}}}`` with these words; None is no rule."""

    def check(value: object, place: Place) -> FrozenDict:
        if value is None:
            return FrozenDict()
        rules = items_of(value, place, "a dict of rules or None")
        return FrozenDict({pattern: _rule(words, numbers, pattern, rule, place) for pattern, rule in rules.items()})

    return check


def _rule(words: RuleWords, numbers: Numbers, pattern: str, rule: object, place: Place) -> dict[str, object]:
    try:
        re.compile(pattern)
    except re.error as error:
        hint = f" It is wrong here: {error}. Use re.escape for a literal name."
        raise place.error(pattern, "keys that are regular expressions", hint) from error
    here = place.item(pattern)
    sides = items_of(rule, here, "a dict with 'weight' and 'activation'", tuple(words))
    return {
        side: _side(words[side], numbers if side == "weight" else {}, entries, here.item(side))
        for side, entries in sides.items()
    }


def _side(known: Mapping[str, _Words], numbers: Numbers, entries: object, place: Place) -> dict[str, object]:
    checked: dict[str, object] = {}
    for key, value in items_of(entries, place, "a dict", (*known, *numbers)).items():
        here = place.item(key)
        if key in numbers:
            listed = value if isinstance(value, (list, tuple)) else (value,)
            checked[key] = tuple(numbers[key](entry, here) for entry in listed)
        else:
            checked[key] = _checked_words(known[key], value, here)
    _check_float_codes(checked, place)
    return checked


def _check_float_codes(checked: Mapping[str, object], place: Place) -> None:
    """Refuse a rule that asks for codes from a table and for what such codes cannot be."""
    dtypes = _listed(checked, "dtype")
    if not dtypes or not set(dtypes) <= _FLOAT_CODES.keys():
        return
    for key, only in (("bits", 4), ("scheme", "sym")):
        if key in checked and only not in _listed(checked, key):
            got = _listed(checked, key)[0] if len(_listed(checked, key)) == 1 else _listed(checked, key)
            hint = f" Codes of dtype {dtypes[0]!r} have four bits and no zero point: leave {key!r} out."
            raise place.item(key).error(got, repr(only), hint)


def _checked_words(words: _Words, value: object, place: Place) -> tuple[str, ...]:
    """The user's words; each must be known, one must be offered."""
    listed = list_of("a word or a list of words", text)(value, place)
    offered = words.known
    want = f"one of {', '.join(map(repr, offered))}"
    for word in listed:
        if word not in offered + words.elsewhere:
            raise place.error(value, want, did_you_mean(word, offered))
    if not set(listed) & set(offered):
        raise place.error(value, want, words.why)
    return listed


class _Ruled(Protocol):
    """What a configuration with rules has."""

    @property
    def op_type_dict(self) -> Mapping[str, object] | None: ...
    @property
    def op_name_dict(self) -> Mapping[str, object] | None: ...
    @property
    def reduce_range(self) -> bool | None: ...
    @property
    def excluded_precisions(self) -> Sequence[str]: ...


def spec_of(
    config: _Ruled, scheme: Scheme, words: RuleWords, options: Mapping[str, tuple[Any, ...]] | None = None
) -> QuantSpec:
    """What a configuration says of modules, as typed values; rules by type come before those by name.

    Args:
        config: Checked.
        scheme: Of modules that no rule speaks of.
        words: What its rules were checked with.
        options: Of modules that no rule speaks of, what a search may choose, see `QuantSpec`.
    """
    options = {} if options is None else options
    by_name = {pattern: rule for pattern, rule in (config.op_name_dict or {}).items() if pattern != DEFAULT_RULE}
    changes = _weight_only_changes if isinstance(scheme, WeightOnlyScheme) else _int8_changes
    by_type = rules_of("type", config.op_type_dict or {}, words, changes)
    rules = (*by_type, *rules_of("name", by_name, words, changes))
    if "bf16" in config.excluded_precisions:
        rules = tuple(map(_without_bfloat16, rules))
    if not config.reduce_range or isinstance(scheme, WeightOnlyScheme):
        return QuantSpec(scheme, rules, options)
    return QuantSpec(replace(scheme, input_bits=_REDUCED_BITS), tuple(map(_with_reduced_range, rules)), options)


_REDUCED_BITS = 7


def _with_reduced_range(rule: QuantRule) -> QuantRule:
    """Let a rule that chooses how inputs are quantized also choose their bits: only asymmetric ones are reduced."""
    if isinstance(rule.outcome, FloatType) or "symmetric_input" not in rule.outcome:
        return rule
    bits = 8 if rule.outcome["symmetric_input"] else _REDUCED_BITS
    return replace(rule, outcome={**rule.outcome, "input_bits": bits})


def _without_bfloat16(rule: QuantRule) -> QuantRule:
    return replace(rule, outcome=FloatType.FLOAT32) if rule.outcome is FloatType.BFLOAT16 else rule


_Given = Mapping[tuple[str, str], str]
"""By side and key, the word of a rule that counts."""
_Changes = Callable[[_Given, Mapping[str, int]], dict[str, Any]]
"""From the words and the numbers of a rule to the fields of the scheme that it sets."""


def _int8_changes(given: _Given, numbers: Mapping[str, int]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if (granularity := given.get(("weight", "granularity"))) is not None:
        changes["per_channel"] = granularity == "per_channel"
    if (scheme := given.get(("activation", "scheme"))) is not None:
        changes["symmetric_input"] = scheme == "sym"
    if (dtype := given.get(("weight", "dtype"))) is not None:
        changes["weight_bits"] = _BITS[dtype]
    if "bits" in numbers:
        changes["weight_bits"] = numbers["bits"]
    if (algorithm := given.get(("activation", "algorithm"))) is not None:
        changes["input_observer"] = OBSERVERS.get(algorithm)()
    return changes


def _weight_only_changes(given: _Given, numbers: Mapping[str, int]) -> dict[str, Any]:
    """As in INC a rule that leaves bits or the group size out asks for the defaults, whatever one before it said."""
    default = WeightOnlyScheme()
    dtype = given.get(("weight", "dtype"), "")
    codes = _FLOAT_CODES.get(dtype, default.codes)
    changes: dict[str, Any] = {
        "bits": numbers.get("bits", _BITS.get(dtype, default.bits)),
        "group_size": numbers.get("group_size", default.group_size),
        "codes": codes,
        "algorithm": given.get(("weight", "algorithm"), "RTN").lower(),
    }
    if (scheme := given.get(("weight", "scheme"))) is not None:
        changes["symmetric"] = scheme == "sym"
    return changes


def rules_of(
    subject: Literal["type", "name"],
    rules: Mapping[str, object],
    words: RuleWords,
    changes: _Changes = _int8_changes,
) -> tuple[QuantRule, ...]:
    """The rules of one checked dict, in its order."""
    return tuple(
        _rule_of(subject, pattern, rule, words, changes) for pattern, rule in rules.items() if isinstance(rule, Mapping)
    )


def _rule_of(
    subject: Literal["type", "name"], pattern: str, rule: Mapping[str, object], words: RuleWords, changes: _Changes
) -> QuantRule:
    """What a checked rule asks for.

    Of several words for one key the first that we offer counts, the others are choices for a search; a float type
    anywhere, on either side, keeps the whole module in float, as in INC.
    """
    weight, activation = (_side_of(rule, side) for side in ("weight", "activation"))
    for word in (*_listed(activation, "dtype"), *_listed(weight, "dtype")):
        if word in _FLOATS:
            return QuantRule(subject, pattern, _FLOATS[str(word)])
    offered = {
        (side, key): [str(word) for word in _listed(entries, key) if word in words[side][key].known]
        for side, entries in (("weight", weight), ("activation", activation))
        for key in words[side]
        if key in entries
    }
    numbers = {
        key: [value for value in _listed(weight, key) if isinstance(value, int)]
        for key in weight
        if key not in words["weight"] and _listed(weight, key)
    }
    chosen = [
        changes(dict(zip(offered, given, strict=True)), dict(zip(numbers, counts, strict=True)))
        for given in product(*offered.values())
        for counts in product(*numbers.values())
    ]
    options = {
        field: values for field in chosen[0] if len(values := tuple(_unique(choice[field] for choice in chosen))) > 1
    }
    return QuantRule(subject, pattern, chosen[0], options)


def precision_rules(subject: Literal["type", "name"], rules: Mapping[str, object]) -> tuple[PrecisionRule, ...]:
    """The rules of one dict checked with `MIXED_PRECISION`, in its order; a word counts if both sides allow it."""
    found = []
    for pattern, rule in rules.items():
        entries = rule if isinstance(rule, Mapping) else {}
        sides = [_listed(_side_of(entries, side), "dtype") for side in ("weight", "activation")]
        first, *others = [words for words in sides if words] or [()]
        words = tuple(
            str(word) for word in first if word in _PRECISIONS.known and all(word in other for other in others)
        )
        found.append(PrecisionRule(subject, pattern, words or ("fp32",)))
    return tuple(found)


def _unique(values: Iterable[Any]) -> list[Any]:
    """The values without repetitions, in their order; they need not be hashable."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _side_of(rule: Mapping[str, object], side: str) -> Mapping[str, object]:
    entries = rule.get(side)
    return entries if isinstance(entries, Mapping) else {}


def _listed(entries: Mapping[str, object], key: str) -> tuple[object, ...]:
    words = entries.get(key)
    return words if isinstance(words, tuple) else ()
