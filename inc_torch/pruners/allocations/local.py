"""Every layer alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.pruners._base import ALLOCATIONS, Limits, Ranking
from inc_torch.pruners._select import count_of


@final
@ALLOCATIONS.register("local", summary="the same share in every layer")
@dataclass(frozen=True, slots=True)
class Local:
    """Every layer gives up the same share of its units, within the limits."""

    def prune(self, ranking: Ranking, ratio: float, limits: Limits) -> None:
        share = min(ratio, limits.greatest)
        layers = range(len(ranking.sizes))
        ranking.prune([[layer] for layer in layers], [count_of(share, size) for size in ranking.sizes])
