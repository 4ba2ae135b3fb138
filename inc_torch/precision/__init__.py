"""Modules, and parts of models, that compute in bfloat16 (or float16) inside a model of another dtype.

One module at a time: ``reasons_against_bfloat16 -> compute_in_bfloat16``. Parts as a whole, in which values stay in
half precision: ``operations_of -> regions_of -> compute_regions``. Back: ``compute_in_float``. Files:
``describe_bfloat16 / rebuild_bfloat16``. Whether the hardware is fast at it: ``has_bfloat16``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from inc_torch.precision._hardware import has_bfloat16, precision_for
from inc_torch.precision._spec import SCHEME, SCHEMES, PrecisionRule, PrecisionSpec

if TYPE_CHECKING:
    from inc_torch.precision._casting import cast
    from inc_torch.precision._conversion import compute_in_bfloat16, compute_in_float, reasons_against_bfloat16
    from inc_torch.precision._description import describe_bfloat16, rebuild_bfloat16
    from inc_torch.precision._module import Bfloat16Module
    from inc_torch.precision._regions import (
        compute_regions,
        layers_of,
        members_of,
        operations_of,
        regions_of,
        ties_of,
    )

__all__ = [
    "SCHEME",
    "SCHEMES",
    "Bfloat16Module",
    "PrecisionRule",
    "PrecisionSpec",
    "cast",
    "compute_in_bfloat16",
    "compute_in_float",
    "compute_regions",
    "describe_bfloat16",
    "has_bfloat16",
    "layers_of",
    "members_of",
    "operations_of",
    "precision_for",
    "reasons_against_bfloat16",
    "rebuild_bfloat16",
    "regions_of",
    "ties_of",
]

_LATER = {
    "Bfloat16Module": "_module",
    "cast": "_casting",
    **dict.fromkeys(("compute_in_bfloat16", "compute_in_float", "reasons_against_bfloat16"), "_conversion"),
    **dict.fromkeys(("describe_bfloat16", "rebuild_bfloat16"), "_description"),
    **dict.fromkeys(
        ("compute_regions", "layers_of", "members_of", "operations_of", "regions_of", "ties_of"), "_regions"
    ),
}
"""What a training in float32 needs nothing of."""


def __getattr__(name: str) -> object:
    """Import what converts modules when it is asked for."""
    if name in _LATER:
        return getattr(importlib.import_module(f"inc_torch.precision.{_LATER[name]}"), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
