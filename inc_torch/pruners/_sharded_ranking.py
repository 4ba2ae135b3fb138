"""Units ranked where they lie on several processes: by counting scores, without moving them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from inc_torch.pruners._exchange import Exchange
from inc_torch.pruners._parts import Part
from inc_torch.pruners._seam import Seam
from inc_torch.pruners._select import DIGITS

__all__ = ["ShardedRanking"]


@final
class ShardedRanking:
    """A `Ranking` that prunes exactly the units that one process would prune, which has all scores.

    Scores are float32 and not negative, so they are ordered as their bits are. A threshold is found digit by digit:
    the ranks add up how many scores have each value of the digit, and go on with the one that holds the threshold. Of
    units that equal it the first of all ranks go, by a count for each rank; no score ever leaves its process.

    Args:
        scores: Unit scores of all layers that are here, flat, layers in order.
        parts: What this process holds of each layer.
        sizes: Units of each whole layer, or entries if these are ranked.
        exchange: The processes.
        seam: The units that several of them hold.
    """

    def __init__(
        self, scores: torch.Tensor, parts: Sequence[Part], sizes: Sequence[int], exchange: Exchange, seam: Seam
    ) -> None:
        self.sizes = tuple(sizes)
        self._parts, self._exchange, self._seam = parts, exchange, seam
        self._kept = torch.ones_like(scores, dtype=torch.bool)
        # Units that are not decided here are those that begin on an earlier rank, which has the last word.
        self._bits = self._decided(scores.view(torch.int32))
        self._keeps = self._decided(self._kept)
        self._pruned = [0] * len(self.sizes)

    @property
    def pruned(self) -> Sequence[int]:
        """See `Ranking`."""
        return self._pruned

    def prune(self, groups: Sequence[Sequence[int]], counts: Sequence[int]) -> list[int]:
        """See `Ranking`."""
        layers = [layer for group in groups for layer in group]
        thresholds, at_threshold = self._thresholds(groups, counts)
        threshold_of = {layer: limit for group, limit in zip(groups, thresholds, strict=True) for layer in group}
        below, equal = self._totals([(layer, threshold_of[layer]) for layer in layers])
        goes = _dealt_out(groups, at_threshold, dict(zip(layers, equal, strict=True)))
        for layer in layers:
            bits = self._bits[layer]
            ties_stay = goes[layer] == 0
            self._keeps[layer].copy_(bits >= threshold_of[layer] if ties_stay else bits > threshold_of[layer])
        some = [layer for layer, ties in zip(layers, equal, strict=True) if 0 < goes[layer] < ties]
        self._restore_ties(some, threshold_of, goes)
        for layer, count in zip(layers, below, strict=True):
            self._pruned[layer] = count + goes[layer]
        return [self._pruned[layer] for layer in layers]

    def kept(self) -> torch.Tensor:
        """See `Ranking`; a collective."""
        self._seam.spread_(self._kept)
        return self._kept

    def _decided(self, units: torch.Tensor) -> list[torch.Tensor]:
        """Views of the flat ``units`` for each layer, [outer, places, entries], without what earlier ranks decide."""
        layers = list(zip(self._parts, self.sizes, strict=True))
        held = [part.outer * part.places * (size // (part.outer * part.along)) for part, size in layers]
        return [
            part.placed(own, size)[:, part.begun_before :]
            for (part, size), own in zip(layers, torch.split(units, held), strict=True)
        ]

    def _counted(self, layer: int) -> torch.Tensor:
        """Bits of the units of ``layer`` that this process counts."""
        bits = self._bits[layer]
        return bits if self._parts[layer].is_counted else bits[:0]

    def _thresholds(self, groups: Sequence[Sequence[int]], counts: Sequence[int]) -> tuple[list[int], list[int]]:
        """For each group the bits of the score at which ``count`` is reached, and how many of that score still go."""
        device = self._kept.device
        remaining = torch.tensor(counts, device=device)
        prefix = torch.zeros_like(remaining)
        rest = [[self._counted(layer).flatten() for layer in group] for group in groups]
        for shift, width in DIGITS:
            histogram = torch.zeros(len(groups), 1 << width, dtype=torch.long, device=device)
            for row, group in zip(histogram, rest, strict=True):
                for bits in group:
                    row += torch.bincount(_digit(bits, shift, width), minlength=1 << width)
            histogram = self._exchange.sum(histogram)
            upto = histogram.cumsum(1)
            found = (upto < remaining[:, None]).sum(1, keepdim=True)
            remaining = remaining - (upto - histogram).gather(1, found).squeeze(1)
            prefix = (prefix << width) + found.squeeze(1)
            rest = [
                [bits[_digit(bits, shift, width) == value] for bits in group]
                for group, value in zip(rest, found.flatten().tolist(), strict=True)
            ]
        return prefix.tolist(), remaining.tolist()

    def _totals(self, limits: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """How many units of each layer, on all ranks, are below its limit, and how many equal it."""
        counted = [(self._counted(layer), limit) for layer, limit in limits]
        below = [torch.count_nonzero(bits < limit) for bits, limit in counted]
        equal = [torch.count_nonzero(bits == limit) for bits, limit in counted]
        totals = self._exchange.sum(torch.stack([*below, *equal])).tolist()
        return totals[: len(limits)], totals[len(limits) :]

    def _restore_ties(self, layers: Sequence[int], limits: dict[int, int], goes: dict[int, int]) -> None:
        """Keep again those units that equal the limit of their layer and come behind the first that go.

        All units of a layer are in the order (outer, rank, place): where a rank stands among the others is known from
        how many ties each rank has in each ``outer``.
        """
        if not layers:
            return
        ties = [self._bits[layer] == limits[layer] for layer in layers]
        counts = [own.flatten(1).sum(1) for own in ties]  # of a copy too: its ranks all take the place of the first
        sizes = [len(count) for count in counts]
        of_ranks = torch.split(self._exchange.gather(torch.cat(counts)), sizes, 1)
        for layer, own, count in zip(layers, ties, of_ranks, strict=True):
            in_order = count.t()
            before = (in_order.flatten().cumsum(0).view_as(in_order) - in_order)[:, self._parts[layer].holder]
            place = own.flatten(1).cumsum(1, dtype=torch.int32).view_as(own)
            self._keeps[layer].logical_or_(own & (place > (goes[layer] - before)[:, None, None]))


def _digit(bits: torch.Tensor, shift: int, width: int) -> torch.Tensor:
    return (bits >> shift) & ((1 << width) - 1)


def _dealt_out(groups: Sequence[Sequence[int]], counts: Sequence[int], available: dict[int, int]) -> dict[int, int]:
    """How many of its units each layer gives up, if each group gives up ``count``, its first layers first."""
    goes: dict[int, int] = {}
    for group, count in zip(groups, counts, strict=True):
        given = 0
        for layer in group:
            goes[layer] = min(count - given, available[layer])
            given += goes[layer]
    return goes
