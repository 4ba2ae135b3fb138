"""Magnitude criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from inc_torch.pruners._base import CRITERIA, Criterion, Factors


@final
@CRITERIA.register("magnitude", summary="|w|, taken when masks are updated")
@dataclass(frozen=True, slots=True)
class Magnitude(Criterion):
    """``s = |w|``, taken at the moment of a mask update.

    Reference: Han et al., Learning both Weights and Connections, arXiv:1506.02626; INC 2.6.1 ``magnitude``.
    """

    needs_gradient: ClassVar[bool] = False
    momentum: ClassVar[float] = 0.0
    factors: ClassVar[Factors] = ("weight",)

    def score(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return weight
