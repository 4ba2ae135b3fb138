"""All layers ranked together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.pruners._base import ALLOCATIONS, Limits, Ranking
from inc_torch.pruners._select import count_of


@final
@ALLOCATIONS.register("global", summary="the cheapest units of all layers together")
@dataclass(frozen=True, slots=True)
class Global:
    """The cheapest units of all layers go, wherever they are, within the limits of each layer.

    Exact water-filling: one threshold for all layers, where each layer's count is clamped to
    ``[floor(least * units), floor(greatest * units)]`` and the counts add up to
    ``floor(ratio * all units)``. While the schedule asks for less than ``least``, that share is the least.
    A target above what the greatest allows is met as far as they allow.

    Reference: INC 2.6.1 reaches the same masks when no least share is given; it settles limits layer by
    layer in model order, here the order of layers does not matter.
    """

    def prune(self, ranking: Ranking, ratio: float, limits: Limits) -> None:
        sizes = ranking.sizes
        budget = count_of(ratio, sum(sizes))
        bounds = [(count_of(min(limits.least, ratio), size), count_of(limits.greatest, size)) for size in sizes]
        free = list(range(len(sizes)))
        while free:
            counts = ranking.prune([free], [min(budget, sum(sizes[layer] for layer in free))])
            clamped = [
                min(max(count, bounds[layer][0]), bounds[layer][1]) for layer, count in zip(free, counts, strict=True)
            ]
            if clamped == counts:
                break
            # If clamping leaves too few pruned, the common threshold rises: layers at their greatest share stay
            # there. If too many, it falls: layers at their least share stay there. If just enough, all are settled.
            excess = sum(clamped) - budget
            settled = {
                layer: wanted
                for layer, count, wanted in zip(free, counts, clamped, strict=True)
                if excess == 0 or (wanted < count if excess < 0 else wanted > count)
            }
            ranking.prune([[layer] for layer in settled], list(settled.values()))
            budget -= sum(settled.values())
            free = [layer for layer in free if layer not in settled]
