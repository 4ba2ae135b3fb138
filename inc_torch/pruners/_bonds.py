"""Layers of which the same units are pruned, such as those that hold the heads of an attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch

from inc_torch.pruners._base import Ranking
from inc_torch.pruners._ranking import LocalRanking

__all__ = ["Bonds"]


@final
@dataclass(frozen=True, slots=True)
class Bonds:
    """Which layers give up the same units; every layer is in one bond.

    There are so few units that each process ranks all of them, wherever the weights lie.

    Attributes:
        members: Indices of the layers of each bond.

    Example:
        >>> bonds = Bonds(((0, 1), (2, 3)))
        >>> bonds.joined([torch.tensor(keep) for keep in ([True, False], [False, False], [False], [True])])
        [tensor([ True, False]), tensor([ True, False]), tensor([True]), tensor([True])]
    """

    members: tuple[tuple[int, ...], ...]

    def kept(self, scores: Sequence[torch.Tensor], prune: Callable[[Ranking], None]) -> list[torch.Tensor]:
        """Choose units by the sum of their scores in all layers of a bond.

        Args:
            scores: Of each whole layer, one a unit.
            prune: Does the choosing.

        Returns:
            For each layer a flat bool, True keeps.
        """
        sums = [torch.stack([scores[layer].float() for layer in bond]).sum(0) for bond in self.members]
        ranking = LocalRanking(torch.cat(sums), [len(own) for own in sums])
        prune(ranking)
        return self._for_each_layer(torch.split(ranking.kept(), list(ranking.sizes)))

    def joined(self, kept: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Keep in all layers of a bond what any of them keeps."""
        return self._for_each_layer(torch.stack([kept[layer] for layer in bond]).any(0) for bond in self.members)

    def _for_each_layer(self, of_bonds: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        by_layer = {layer: own for bond, own in zip(self.members, of_bonds, strict=True) for layer in bond}
        return [by_layer[layer] for layer in sorted(by_layer)]
