"""Gradient criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from inc_torch.pruners._base import CRITERIA, Criterion, Factors


@final
@CRITERIA.register("gradient", summary="|g| of the last step")
@dataclass(frozen=True, slots=True)
class Gradient(Criterion):
    """``s = |g|`` of the last optimizer step. A pruned weight may come back, from the value 0.

    Reference: INC 2.6.1 ``gradient``.
    """

    needs_gradient: ClassVar[bool] = True
    momentum: ClassVar[float] = 0.0
    factors: ClassVar[Factors] = ("gradient",)

    def score(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return gradient
