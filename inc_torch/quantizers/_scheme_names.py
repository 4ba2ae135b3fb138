"""The names under which schemes stand in reports and saved descriptions."""

from __future__ import annotations

import re
from typing import Final

from inc_torch.quantizers._spec import QuantScheme

__all__ = ["ROWS", "is_scheme_name", "named_scheme", "scheme_name"]

ROWS: Final = "w8-per-row"
"""Embeddings: int8 rows with a scale each, nothing else is quantized."""

_OPERATOR: Final = re.compile(r"w[2-8]a(?P<bits>[2-8])-(static|dynamic)(-per-tensor)?(-symmetric)?")


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
    """Whether ``name`` is one that `scheme_name` gives, or `ROWS`."""
    return name == ROWS or (isinstance(name, str) and _OPERATOR.fullmatch(name) is not None)


def named_scheme(name: str) -> QuantScheme:
    """The scheme of this name, as far as it matters for what is converted already.

    Example:
        >>> named_scheme("w8a7-static-symmetric").top
        127
    """
    found = _OPERATOR.fullmatch(name)
    bits = 8 if found is None else int(found["bits"])
    return QuantScheme(symmetric_input=name.endswith("-symmetric"), input_bits=bits, dynamic="-dynamic" in name)
