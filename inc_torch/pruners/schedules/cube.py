"""Cube sparsity schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.pruners._base import SCHEDULES


@final
@SCHEDULES.register("cube", summary="very slow at first")
@dataclass(frozen=True, slots=True)
class Cube:
    """``a + (b - a) * t ** 3``, for progress t in [0, 1], initial a, target b.

    Not the 1 - (1 - t)^3 of Zhu and Gupta (arXiv:1710.01878), which is fast at first: INC's ``cube`` is this one.

    Example:
        >>> round(Cube().sparsity(0.5, 0.8), 6)
        0.1
    """

    def sparsity(self, progress: float, target: float, initial: float = 0.0) -> float:
        return initial + (target - initial) * progress**3
