"""SNIP criterion smoothed over steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from inc_torch.pruners._base import CRITERIA, Criterion, Factors


@final
@CRITERIA.register("snip_momentum", summary="0.9 * s + |w * g|, smoothed over steps")
@dataclass(frozen=True, slots=True)
class SnipMomentum(Criterion):
    """``s <- 0.9 * s + |w * g|`` at every step, ``s = 0`` at the start; a memory of about ten steps.

    Reference: Lee et al., arXiv:1810.02340 for the term; the smoothing is INC 2.6.1 ``snip_momentum``
    (its documentation prints the two constants the wrong way round).
    """

    needs_gradient: ClassVar[bool] = True
    momentum: ClassVar[float] = 0.9
    factors: ClassVar[Factors] = ("weight", "gradient")

    def score(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return weight * gradient
