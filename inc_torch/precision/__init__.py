"""Modules that compute in bfloat16 inside a model of another dtype.

``reasons_against_bfloat16 -> compute_in_bfloat16``, and back: ``compute_in_float``. Files: ``describe_bfloat16 /
rebuild_bfloat16``. Whether the hardware is fast at it: ``has_bfloat16``.
"""

from __future__ import annotations

from inc_torch.precision._conversion import (
    SCHEME,
    compute_in_bfloat16,
    compute_in_float,
    describe_bfloat16,
    reasons_against_bfloat16,
    rebuild_bfloat16,
)
from inc_torch.precision._hardware import has_bfloat16
from inc_torch.precision._module import Bfloat16Module

__all__ = [
    "SCHEME",
    "Bfloat16Module",
    "compute_in_bfloat16",
    "compute_in_float",
    "describe_bfloat16",
    "has_bfloat16",
    "reasons_against_bfloat16",
    "rebuild_bfloat16",
]
