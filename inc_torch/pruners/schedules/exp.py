"""Exponential sparsity schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from inc_torch.pruners._base import SCHEDULES


@final
@SCHEDULES.register("exp", summary="fast at first: the kept share shrinks by a constant factor")
@dataclass(frozen=True, slots=True)
class Exponential:
    """``1 - (1 - a) * ((1 - b) / (1 - a)) ** t``, for progress t in [0, 1], initial a, target b.

    Example:
        >>> round(Exponential().sparsity(0.5, 0.8), 6)
        0.552786
    """

    def sparsity(self, progress: float, target: float, initial: float = 0.0) -> float:
        return 1 - (1 - initial) * math.pow((1 - target) / (1 - initial), progress)
