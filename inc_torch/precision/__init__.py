"""Modules, and parts of models, that compute in bfloat16 (or float16) inside a model of another dtype.

One module at a time: ``reasons_against_bfloat16 -> compute_in_bfloat16``. Parts as a whole, in which values stay in
half precision: ``operations_of -> regions_of -> compute_regions``. Back: ``compute_in_float``. Files:
``describe_bfloat16 / rebuild_bfloat16``. Whether the hardware is fast at it: ``has_bfloat16``.
"""

from __future__ import annotations

from inc_torch.precision._casting import cast
from inc_torch.precision._conversion import (
    SCHEME,
    SCHEMES,
    compute_in_bfloat16,
    compute_in_float,
    reasons_against_bfloat16,
)
from inc_torch.precision._description import describe_bfloat16, rebuild_bfloat16
from inc_torch.precision._hardware import has_bfloat16, precision_for
from inc_torch.precision._module import Bfloat16Module
from inc_torch.precision._regions import compute_regions, layers_of, members_of, operations_of, regions_of, ties_of
from inc_torch.precision._spec import PrecisionRule, PrecisionSpec

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
