"""All layers ranked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from inc_torch.pruners._base import ALLOCATIONS, Limits
from inc_torch.pruners._select import count_of, keep_largest


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

    def keep(self, scores: torch.Tensor, sizes: Sequence[int], ratio: float, limits: Limits) -> torch.Tensor:
        budget = count_of(ratio, scores.numel())
        bounds = [(count_of(min(limits.least, ratio), size), count_of(limits.greatest, size)) for size in sizes]
        keep = torch.ones_like(scores, dtype=torch.bool)
        keeps, parts = list(torch.split(keep, list(sizes))), list(torch.split(scores, list(sizes)))
        free = list(range(len(sizes)))
        while free:
            whole = len(free) == len(sizes)
            candidates = scores if whole else torch.cat([parts[layer] for layer in free])
            chosen = keep_largest(candidates, min(budget, candidates.numel()))
            counts = _pruned_counts(chosen, [sizes[layer] for layer in free])
            clamped = [
                min(max(count, bounds[layer][0]), bounds[layer][1]) for layer, count in zip(free, counts, strict=True)
            ]
            excess = sum(clamped) - budget
            for layer, part in zip(free, torch.split(chosen, [sizes[layer] for layer in free]), strict=True):
                keeps[layer].copy_(part)
            if clamped == counts:
                break
            # If clamping leaves too few pruned, the common threshold rises: layers at their greatest share stay
            # there. If too many, it falls: layers at their least share stay there. If just enough, all are settled.
            settled = [
                (layer, wanted)
                for layer, count, wanted in zip(free, counts, clamped, strict=True)
                if excess == 0 or (wanted < count if excess < 0 else wanted > count)
            ]
            for layer, wanted in settled:
                keeps[layer].copy_(keep_largest(parts[layer], wanted))
                budget -= wanted
                free.remove(layer)
            if excess == 0:
                break
        return keep


def _pruned_counts(keep: torch.Tensor, sizes: Sequence[int]) -> list[int]:
    kept = torch.stack([torch.count_nonzero(part) for part in torch.split(keep, list(sizes))]).tolist()
    return [size - count for size, count in zip(sizes, kept, strict=True)]
