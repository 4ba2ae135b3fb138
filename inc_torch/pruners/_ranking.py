"""Units ranked where one process holds all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from inc_torch.pruners._select import keep_largest

__all__ = ["LocalRanking"]


@final
class LocalRanking:
    """A `Ranking` of units that all lie in this process.

    Args:
        scores: Unit scores of all layers, flat, layers in order.
        sizes: Units of each layer.

    Example:
        >>> ranking = LocalRanking(torch.tensor([4.0, 1.0, 3.0, 2.0]), [2, 2])
        >>> ranking.prune([[0, 1]], [3])
        [1, 2]
        >>> ranking.kept().tolist()
        [True, False, False, False]
    """

    def __init__(self, scores: torch.Tensor, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self._all = scores
        self._scores = torch.split(scores, list(sizes))
        self._kept = torch.ones_like(scores, dtype=torch.bool)
        self._keeps = torch.split(self._kept, list(sizes))
        self._pruned = [0] * len(sizes)

    @property
    def pruned(self) -> Sequence[int]:
        """See `Ranking`."""
        return self._pruned

    def prune(self, groups: Sequence[Sequence[int]], counts: Sequence[int]) -> list[int]:
        """See `Ranking`."""
        pruned = [own for layers, count in zip(groups, counts, strict=True) for own in self._prune(layers, count)]
        for layer, own in zip((layer for layers in groups for layer in layers), pruned, strict=True):
            self._pruned[layer] = own
        return pruned

    def kept(self) -> torch.Tensor:
        """See `Ranking`."""
        return self._kept

    def _prune(self, layers: Sequence[int], count: int) -> list[int]:
        if len(layers) == 1:
            self._keeps[layers[0]].copy_(keep_largest(self._scores[layers[0]], count))
            return [count]
        is_all = len(layers) == len(self.sizes)
        candidates = self._all if is_all else torch.cat([self._scores[layer] for layer in layers])
        chosen = torch.split(keep_largest(candidates, count), [self.sizes[layer] for layer in layers])
        for layer, keep in zip(layers, chosen, strict=True):
            self._keeps[layer].copy_(keep)
        kept = torch.stack([torch.count_nonzero(keep) for keep in chosen]).tolist()
        return [self.sizes[layer] - count for layer, count in zip(layers, kept, strict=True)]
