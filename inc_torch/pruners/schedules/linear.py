"""Linear sparsity schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.pruners._base import SCHEDULES


@final
@SCHEDULES.register("linear", summary="constant growth")
@dataclass(frozen=True, slots=True)
class Linear:
    """``a + (b - a) * t``, for progress t in [0, 1], initial a, target b.

    Example:
        >>> round(Linear().sparsity(0.5, 0.8), 6)
        0.4
    """

    def sparsity(self, progress: float, target: float, initial: float = 0.0) -> float:
        return initial + (target - initial) * progress
