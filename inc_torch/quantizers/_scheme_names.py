"""The names under which schemes stand in reports and saved descriptions."""

from __future__ import annotations

import re
from typing import Final

from inc_torch.quantizers._spec import QuantScheme

__all__ = ["ROWS", "input_top", "is_scheme_name", "scheme_name"]

ROWS: Final = "w8-per-row"
"""Embeddings: int8 rows with a scale each, nothing else is quantized."""

_OPERATOR: Final = re.compile(r"w8a[78]-static(-per-tensor)?(-symmetric)?")


def scheme_name(scheme: QuantScheme) -> str:
    """Name a scheme: bits of weight and input, and what differs from the default.

    Example:
        >>> scheme_name(QuantScheme()), scheme_name(QuantScheme(per_channel=False, reduced_range=True))
        ('w8a8-static', 'w8a7-static-per-tensor')
    """
    name = "w8a7-static" if scheme.reduced_range else "w8a8-static"
    name += "" if scheme.per_channel else "-per-tensor"
    return name + ("-symmetric" if scheme.symmetric_input else "")


def is_scheme_name(name: object) -> bool:
    """Whether ``name`` is one that `scheme_name` gives, or `ROWS`."""
    return name == ROWS or (isinstance(name, str) and _OPERATOR.fullmatch(name) is not None)


def input_top(name: str) -> int:
    """The greatest input code under the scheme of this name."""
    return 127 if name.startswith("w8a7") else 255
