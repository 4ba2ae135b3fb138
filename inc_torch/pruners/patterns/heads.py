"""Attention heads: their channels in all layers of an attention are pruned together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch

from inc_torch.pruners._base import PATTERNS, Grid, Pattern, Reduction
from inc_torch.pruners._matrix import MatrixView
from inc_torch.pruners._unit_grid import UnitGrid
from inc_torch.pruners.patterns.block import BlockGrid

_FORM = "mha"


@final
@PATTERNS.register(_FORM, summary="whole attention heads")
@dataclass(frozen=True, slots=True)
class Heads(Pattern):
    """A unit is a head: its queries, keys and values, and what the output layer takes of it.

    Which layers belong together, and where the heads are in them, is found by `find_attentions`.
    """

    binds_layers: ClassVar[bool] = True

    @property
    def density(self) -> float:
        """Every head may go, as far as the limits of each attention allow."""
        return 1.0

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``"mha"``."""
        return cls() if text == _FORM else None

    def grid(self, view: MatrixView, reduction: Reduction) -> Grid | str:
        """No weight has heads by itself."""
        return "heads are those of an attention, not of a single layer"


@final
@dataclass(frozen=True, slots=True)
class _Run:
    """Channels from ``start`` on that hold all heads in order, and the blocks that they are."""

    start: int
    length: int
    grid: BlockGrid


@final
class HeadGrid(UnitGrid):
    """The heads in one layer of an attention. Scores and masks have one entry a head.

    The score is the sum over the layer's runs, so that the layers of an attention may be added up.

    Args:
        runs: Runs of channels, see `HeadGrid.over`.
        axis: The weight's axis along which they lie.
    """

    def __init__(self, runs: tuple[_Run, ...], axis: int) -> None:
        self._runs, self._axis = runs, axis
        self.units = runs[0].grid.units
        self.mask_shape: tuple[int, ...] = (self.units,)
        self.score_shape: tuple[int, ...] = self.mask_shape

    @classmethod
    def over(
        cls, view: MatrixView, heads: int, sizes: tuple[int, ...], reduction: Reduction, *, of_outputs: bool
    ) -> Self:
        """Lay heads over a weight.

        Args:
            view: The weight as a matrix.
            heads: How many there are.
            sizes: Channels of one head in each run.
            reduction: How element scores become the score of a run.
            of_outputs: Whether the channels are outputs; else they are inputs.
        """
        runs: list[_Run] = []
        start = 0
        for size in sizes:
            length = heads * size
            if of_outputs:
                own = MatrixView(view.axes, (length, *view.sizes[1:]))
                grid = BlockGrid(own, size, own.width, reduction)
            else:
                own = MatrixView(view.axes, (*view.sizes[:-1], length))
                grid = BlockGrid(own, own.height, size, reduction)
            runs.append(_Run(start, length, grid))
            start += length
        return cls(tuple(runs), view.axes[0 if of_outputs else -1])

    def _of(self, run: _Run, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if len(self._runs) == 1 else tensor.narrow(self._axis, run.start, run.length)

    def reduce(self, signed: torch.Tensor, reduction: Reduction | None = None) -> torch.Tensor:
        scores = [run.grid.reduce(self._of(run, signed), reduction).flatten() for run in self._runs]
        return torch.stack(scores).sum(0)

    def apply_(self, tensor: torch.Tensor, mask: torch.Tensor) -> None:
        for run in self._runs:
            run.grid.apply_(self._of(run, tensor), mask.view(run.grid.mask_shape))

    def expand(self, mask: torch.Tensor) -> torch.Tensor:
        wide = [run.grid.expand(mask.view(run.grid.mask_shape)) for run in self._runs]
        return torch.cat(wide, self._axis)

    def first_axis(self) -> tuple[int, int] | None:
        """Runs that are cut by processes hold other heads each: they do not lie along that axis."""
        return None if len(self._runs) > 1 and self._axis == 0 else self._runs[0].grid.first_axis()

    def resized(self, length: int) -> HeadGrid:
        """See `Grid`; all runs have the same number of heads, whatever the length."""
        if self._axis != 0:
            runs = tuple(_Run(run.start, run.length, run.grid.resized(length)) for run in self._runs)
        else:
            runs = (_Run(0, length, self._runs[0].grid.resized(length)),)
        return HeadGrid(runs, self._axis)
