"""Change of the loss with a mask over blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from inc_torch.pruners._base import CRITERIA, Criterion, Factors, Reduction


@final
@CRITERIA.register("block_mask", summary="0.9 * s + |sum of w * g over a block|")
@dataclass(frozen=True, slots=True)
class BlockMask(Criterion):
    """``s <- 0.9 * s + |dL/dm|`` from the first update step to the last, ``s = 0`` before it.

    ``m`` is a number for each block that its weights are multiplied with. At ``m = 1``

        dL/dm = sum over the block of w * g

    so no forward has to be changed for it. Unlike ``snip_momentum``, effects that cancel within a block do not count.

    Source: INC 2.6.1 ``block_mask``, which multiplies a mask into the forward of Linear layers and takes its gradient;
    differs in that every kind of layer can be pruned by it.
    """

    needs_gradient: ClassVar[bool] = True
    momentum: ClassVar[float] = 0.9
    reduction: ClassVar[Reduction | None] = "net"
    only_in_window: ClassVar[bool] = True
    factors: ClassVar[Factors] = ("weight", "gradient")

    def score(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return weight * gradient
