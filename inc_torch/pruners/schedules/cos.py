"""Cosine sparsity schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from inc_torch.pruners._base import SCHEDULES


@final
@SCHEDULES.register("cos", summary="slow at first")
@dataclass(frozen=True, slots=True)
class Cosine:
    """``a + (b - a) * (1 - cos(pi * t / 2))``, for progress t in [0, 1], initial a, target b.

    Example:
        >>> round(Cosine().sparsity(0.5, 0.8), 6)
        0.234315
    """

    def sparsity(self, progress: float, target: float, initial: float = 0.0) -> float:
        return initial + (target - initial) * (1 - math.cos(math.pi * progress / 2))
