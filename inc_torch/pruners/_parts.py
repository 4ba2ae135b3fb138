"""What one process holds of a layer under pruning: all of it, or the units that its shard of the weight touches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch.nn import functional as F

from inc_torch.pruners._base import Grid, Reduction
from inc_torch.pruners._matrix import DenseBlocks

__all__ = ["Part"]


@final
@dataclass(frozen=True, slots=True)
class Part:
    """What one process holds of a layer, in whole units along the first axis of its weight.

    A shard may begin or end inside a unit. Each process that touches a unit then keeps its score and its mask, and
    the first of them counts it. At the ends of a shard, zeros stand for the entries of such a unit that others hold;
    where a whole shard lies inside one unit, the unit is made as small as the shard instead.

    Six rows in 2x1 blocks on two processes::

        process 0   rows 0 1 2    blocks 0 1    first=0  places=2  begun_before=0  filling=(0, 1)  shared=(1,)
        process 1   rows 3 4 5    blocks 1 2    first=1  places=2  begun_before=1  filling=(1, 0)  shared=(1,)

    Attributes:
        whole: The pattern over the whole weight.
        grid: The pattern over what is here.
        outer: How often the first axis runs through units, scores and masks, see `Grid.first_axis`.
        along: Units along it in the whole weight.
        first: Place among these of the first that is here.
        places: How many of them are here.
        begun_before: How many of them, none or one, begin on an earlier process, which counts them.
        length: Entries of the weight's first axis that are here, if it is cut.
        filling: Entries of that axis to be filled up before and behind these.
        shared: Places of all units that lie on several processes, here or elsewhere.
        holder: Number of the process that counts what is here.
        is_counted: Whether it is this process: it is not for a copy of what another one counts.
    """

    whole: Grid
    grid: Grid
    outer: int = 1
    along: int = 1
    first: int = 0
    places: int = 1
    begun_before: int = 0
    length: int | None = None
    filling: tuple[int, int] = (0, 0)
    shared: tuple[int, ...] = ()
    holder: int = 0
    is_counted: bool = True

    @classmethod
    def of_copy(cls, whole: Grid, rank: int = 0) -> Self:
        """The part of a process that holds all of a weight, as every other does; the first one counts."""
        return cls(whole, whole, is_counted=rank == 0)

    @classmethod
    def of_shard(cls, whole: Grid, length: int, rank: int, ranks: int) -> Self | None:
        """The part of one of several processes that cut the first axis of a weight as ``torch.chunk`` does.

        Args:
            whole: The pattern over the whole weight.
            length: Entries of the weight's first axis.
            rank: Number of the process.
            ranks: How many there are.

        Returns:
            The part, or None if the units do not lie along the first axis.

        Example:
            >>> from torch import nn
            >>> from inc_torch.pruners import MatrixView, parse_pattern
            >>> whole = parse_pattern("2x1").grid(MatrixView.of(nn.Linear(1, 6), torch.Size([6, 1])), "mean")
            >>> part = Part.of_shard(whole, 6, rank=1, ranks=2)
            >>> part.first, part.places, part.begun_before, part.filling, part.shared
            (1, 2, 1, (1, 0), (1,))
        """
        axis = whole.first_axis()
        if axis is None:
            return None
        outer, along = axis
        unit = length // along
        bounds = [min(length, -(-length // ranks) * index) for index in range(ranks + 1)]
        start, stop = bounds[rank : rank + 2]
        first, last = start // unit, -(-stop // unit) if start < stop else start // unit
        filling = (start - first * unit, last * unit - stop) if start < stop else (0, 0)
        if last - first == 1 and whole.units == math.prod(whole.score_shape):
            filling = (0, 0)
        return cls(
            whole,
            whole.resized(stop - start + sum(filling)),
            outer=outer,
            along=along,
            first=first,
            places=last - first,
            begun_before=min(last, -(-start // unit)) - first,
            length=stop - start,
            filling=filling,
            shared=tuple(sorted({bound // unit for bound in bounds if bound % unit})),
            holder=rank,
        )

    @property
    def is_copy(self) -> bool:
        """Whether every process holds all of the layer."""
        return self.length is None

    def reduce(self, signed: torch.Tensor, reduction: Reduction | None = None) -> torch.Tensor:
        """Scores of what is here, from element importances shaped like the local weight; of shared units a part."""
        if any(self.filling):
            signed = F.pad(signed, (0, 0) * (signed.dim() - 1) + self.filling)
        return self.grid.reduce(signed, reduction)

    def apply_(self, tensor: torch.Tensor, mask: torch.Tensor) -> None:
        """Multiply ``tensor``, shaped like the local weight, by a mask, or by factors in its shape, in place."""
        if any(self.filling):
            tensor.mul_(self.expand(mask))
        else:
            self.grid.apply_(tensor, mask)

    def dense_blocks(self, tensor: torch.Tensor) -> DenseBlocks | None:
        """How ``tensor``, shaped like the local weight, lies under what is stored; see `Grid.dense_blocks`."""
        return None if any(self.filling) else self.grid.dense_blocks(tensor)

    def expand(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask in the shape of the local weight, bool, True keeps."""
        wide = self.grid.expand(mask)
        before, behind = self.filling
        return wide[before : len(wide) - behind]

    def cut(self, stored: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A copy of what is here of the mask or the scores of the whole weight, in the shape of the local ones."""
        whole = stored.reshape(self.outer, self.along, -1)
        return whole[:, self.first : self.first + self.places].reshape(shape).clone()

    def placed(self, stored: torch.Tensor, entries: int) -> torch.Tensor:
        """Local units, scores or a mask as [outer, places, entries of a unit]; a view where that is possible.

        Args:
            stored: What is here, flat or in shape.
            entries: How many entries the whole layer has.
        """
        return stored.reshape(self.outer, self.places, entries // (self.outer * self.along))
