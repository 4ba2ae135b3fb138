"""``op_type_dict`` and ``op_name_dict``: which modules are quantized how, from INC's words to rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from inc_torch.config._checks import Place, integer, items_of, list_of, text
from inc_torch.config._readonly import FrozenDict
from inc_torch.core.errors import did_you_mean
from inc_torch.quantizers import QuantRule, QuantScheme

__all__ = ["DEFAULT_RULE", "check_rules", "rules_of", "scheme_of"]

DEFAULT_RULE = "default_qconfig"
"""Key of ``op_name_dict`` that speaks of every module that nothing else names."""

_FLOAT = "fp32"
_BITS = 8


@final
@dataclass(frozen=True, slots=True)
class _Words:
    """The words of one key: what training can do, and what INC knows besides."""

    offered: tuple[str, ...]
    elsewhere: tuple[str, ...] = ()
    why: str = ""


_KEYS: dict[str, dict[str, _Words]] = {
    "weight": {
        "dtype": _Words(
            ("int8", _FLOAT),
            ("uint8", "int", "int4", "nf4", "fp4", "fp4_e2m1_bnb", "fp4_e2m1", "bf16", "fp16"),
            " Quantization-aware training makes int8 weights; 'fp32' leaves the module in float.",
        ),
        "scheme": _Words(("sym",), ("asym", "asym_float"), " Weights are symmetric, so that a pruned zero stays zero."),
        "granularity": _Words(("per_channel", "per_tensor")),
        "algorithm": _Words(
            ("minmax",), ("RTN", "AWQ", "GPTQ", "TEQ", "AUTOROUND"), " The others need no training and learn nothing."
        ),
    },
    "activation": {
        "dtype": _Words(
            ("uint8", "int8", _FLOAT),
            ("bf16", "fp16", "None"),
            " Quantization-aware training makes 8-bit inputs; 'fp32' leaves the module in float.",
        ),
        "scheme": _Words(("asym", "sym")),
        "granularity": _Words(("per_tensor",), ("per_channel",), " The int8 kernels take one input scale a tensor."),
        "algorithm": _Words(
            ("minmax",), ("kl", "percentile", "placeholder"), " The others calibrate models that are not trained."
        ),
    },
}
_WEIGHT_NUMBERS = {
    "bits": integer("8, the width of int8", lambda x: x == _BITS),
    "group_size": integer("-1: training makes no groups", lambda x: x == -1),
}


def check_rules(value: object, place: Place) -> FrozenDict:
    """Check ``{pattern: {"weight": {...}, "activation": {...}}}``; None is no rule."""
    if value is None:
        return FrozenDict()
    rules = items_of(value, place, "a dict of rules or None")
    return FrozenDict({pattern: _rule(pattern, rule, place) for pattern, rule in rules.items()})


def _rule(pattern: str, rule: object, place: Place) -> dict[str, object]:
    try:
        re.compile(pattern)
    except re.error as error:
        hint = f" It is wrong here: {error}. Use re.escape for a literal name."
        raise place.error(pattern, "keys that are regular expressions", hint) from error
    here = place.item(pattern)
    sides = items_of(rule, here, "a dict with 'weight' and 'activation'", tuple(_KEYS))
    return {side: _side(side, entries, here.item(side)) for side, entries in sides.items()}


def _side(side: str, entries: object, place: Place) -> dict[str, object]:
    known = _KEYS[side]
    numbers = _WEIGHT_NUMBERS if side == "weight" else {}
    checked: dict[str, object] = {}
    for key, value in items_of(entries, place, "a dict", (*known, *numbers)).items():
        here = place.item(key)
        if key in numbers:
            listed = value if isinstance(value, (list, tuple)) else (value,)
            checked[key] = tuple(numbers[key](entry, here) for entry in listed)
        else:
            checked[key] = _words(known[key], value, here)
    return checked


def _words(words: _Words, value: object, place: Place) -> tuple[str, ...]:
    """The user's words; each must be known, one must be offered."""
    listed = list_of("a word or a list of words", text)(value, place)
    want = f"one of {', '.join(map(repr, words.offered))}"
    for word in listed:
        if word not in words.offered + words.elsewhere:
            raise place.error(value, want, did_you_mean(word, words.offered))
    if not set(listed) & set(words.offered):
        raise place.error(value, want, words.why)
    return listed


def scheme_of(rule: Mapping[str, object], reduced_range: bool) -> QuantScheme | None:
    """The scheme that a checked rule asks for, None for float.

    Of several words for one key the first counts, as INC's lists are choices for tuning; ``fp32``
    anywhere keeps the whole module in float, as in INC.
    """
    weight, activation = (_side_of(rule, side) for side in ("weight", "activation"))
    if _FLOAT in (*_listed(weight, "dtype"), *_listed(activation, "dtype")):
        return None
    return QuantScheme(
        per_channel=_first(weight, "weight", "granularity") == "per_channel",
        symmetric_input=_first(activation, "activation", "scheme") == "sym",
        reduced_range=reduced_range,
    )


def rules_of(
    subject: Literal["type", "name"], rules: Mapping[str, object], reduced_range: bool
) -> tuple[QuantRule, ...]:
    """The rules of one checked dict, in its order."""
    return tuple(
        QuantRule(subject, pattern, scheme_of(rule, reduced_range))
        for pattern, rule in rules.items()
        if isinstance(rule, Mapping)
    )


def _side_of(rule: Mapping[str, object], side: str) -> Mapping[str, object]:
    entries = rule.get(side)
    return entries if isinstance(entries, Mapping) else {}


def _listed(entries: Mapping[str, object], key: str) -> tuple[object, ...]:
    words = entries.get(key)
    return words if isinstance(words, tuple) else ()


def _first(entries: Mapping[str, object], side: str, key: str) -> object:
    """The first word for the key, or what is done where none is given."""
    return next(iter(_listed(entries, key)), _KEYS[side][key].offered[0])
