"""SNIP criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from inc_torch.pruners._base import CRITERIA, Criterion, Factors


@final
@CRITERIA.register("snip", summary="|w * g| of the last step")
@dataclass(frozen=True, slots=True)
class Snip(Criterion):
    """``s = |w * g|``: the first-order change of the loss if the weight went, at the last step.

    Reference: Lee et al., SNIP: Single-shot Network Pruning, arXiv:1810.02340; INC 2.6.1 ``snip``.
    """

    needs_gradient: ClassVar[bool] = True
    momentum: ClassVar[float] = 0.0
    factors: ClassVar[Factors] = ("weight", "gradient")

    def score(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return weight * gradient
