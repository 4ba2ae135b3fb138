"""The names under which schemes stand in reports and saved descriptions."""

from __future__ import annotations

import re
from typing import Final, get_args

from inc_torch.quantizers._spec import Codes, QuantScheme, WeightOnlyScheme

__all__ = [
    "ROWS",
    "code_name",
    "is_scheme_name",
    "is_weight_only_name",
    "named_scheme",
    "named_weight_only",
    "scheme_name",
    "weight_only_name",
]

ROWS: Final = "w8-per-row"
"""Embeddings: int8 rows with a scale each, nothing else is quantized."""

_OPERATOR: Final = re.compile(r"w[2-8]a(?P<bits>[2-8])-(static|dynamic)(-per-tensor)?(-symmetric)?")
_GROUP: Final = r"(g(?P<group>[1-9][0-9]*)|per-row)"
_INTEGERS: Final = re.compile(rf"w(?P<bits>[2-8])-{_GROUP}-(?P<symmetry>a?sym)")
_FLOAT_CODES: Final[dict[str, Codes]] = {codes: codes for codes in get_args(Codes) if codes != "int"}
_FLOATS: Final = re.compile(rf"(?P<codes>{'|'.join(_FLOAT_CODES)})-{_GROUP}")


def scheme_name(scheme: QuantScheme) -> str:
    """Name a scheme: bits of weight and input, and what differs from the default.

    Example:
        >>> scheme_name(QuantScheme()), scheme_name(QuantScheme(per_channel=False, input_bits=7))
        ('w8a8-static', 'w8a7-static-per-tensor')
    """
    name = f"w{scheme.weight_bits}a{scheme.input_bits}-{'dynamic' if scheme.dynamic else 'static'}"
    name += "" if scheme.per_channel else "-per-tensor"
    return name + ("-symmetric" if scheme.symmetric_input else "")


def is_scheme_name(name: object) -> bool:
    """Whether ``name`` is one that `scheme_name` or `weight_only_name` gives, or `ROWS`."""
    return name == ROWS or is_weight_only_name(name) or (isinstance(name, str) and bool(_OPERATOR.fullmatch(name)))


def is_weight_only_name(name: object) -> bool:
    """Whether ``name`` is one that `weight_only_name` gives."""
    return isinstance(name, str) and (_INTEGERS.fullmatch(name) or _FLOATS.fullmatch(name)) is not None


def named_scheme(name: str) -> QuantScheme:
    """The scheme of this name, as far as it matters for what is converted already.

    Example:
        >>> named_scheme("w8a7-static-symmetric").top
        127
    """
    found = _OPERATOR.fullmatch(name)
    bits = 8 if found is None else int(found["bits"])
    return QuantScheme(symmetric_input=name.endswith("-symmetric"), input_bits=bits, dynamic="-dynamic" in name)


def weight_only_name(scheme: WeightOnlyScheme) -> str:
    """Name a scheme of weights alone: codes, group and symmetry. How the scales were found is not in the name.

    Example:
        >>> weight_only_name(WeightOnlyScheme()), weight_only_name(WeightOnlyScheme(8, -1, symmetric=False))
        ('w4-g32-sym', 'w8-per-row-asym')
        >>> weight_only_name(WeightOnlyScheme(codes="nf4"))
        'nf4-g32'
    """
    group = "per-row" if scheme.group_size == -1 else f"g{scheme.group_size}"
    if scheme.codes != "int":
        return f"{scheme.codes}-{group}"
    return f"w{scheme.bits}-{group}-{'sym' if scheme.symmetric else 'asym'}"


def code_name(name: str | None, bits: int = 8) -> str:
    """What to call the codes of a scheme of this name.

    Args:
        name: Of the scheme; None if it is not known.
        bits: How many a code has, where the scheme does not tell.

    Example:
        >>> code_name("w4-g32-sym"), code_name("nf4-g32"), code_name("w8a8-static")
        ('int4', 'nf4', 'int8')
    """
    if name is None or not is_weight_only_name(name):
        return f"int{bits}"
    scheme = named_weight_only(name)
    return f"int{scheme.bits}" if scheme.codes == "int" else scheme.codes


def named_weight_only(name: str) -> WeightOnlyScheme:
    """The scheme of this name, as far as it matters for what is converted already.

    Args:
        name: One for which `is_weight_only_name` holds.

    Raises:
        ValueError: It does not.

    Example:
        >>> named_weight_only("w3-g128-asym") == WeightOnlyScheme(bits=3, group_size=128, symmetric=False)
        True
    """
    floats = _FLOATS.fullmatch(name)
    found = floats or _INTEGERS.fullmatch(name)
    if found is None:
        message = f"{name!r} is no scheme of weights alone: expected a name such as 'w4-g32-sym'."
        raise ValueError(message)
    group_size = -1 if found["group"] is None else int(found["group"])
    if floats is not None:
        return WeightOnlyScheme(group_size=group_size, codes=_FLOAT_CODES[found["codes"]])
    return WeightOnlyScheme(int(found["bits"]), group_size, symmetric=found["symmetry"] == "sym")
