"""Block patterns: NxM, channelxM, Nxchannel; 1x1 is unstructured pruning."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, final

import torch

from inc_torch.core.errors import ConfigError
from inc_torch.pruners._base import PATTERNS, Grid, Pattern, Reduction
from inc_torch.pruners._matrix import DenseBlocks, MatrixView
from inc_torch.pruners._unit_grid import UnitGrid

_FORM = re.compile(r"(\d+|channel)x(\d+|channel)")
_CHANNEL = "channel"


@final
@PATTERNS.register("NxM", summary="blocks of N output rows by M input columns, either may be 'channel'")
@dataclass(frozen=True, slots=True)
class Block(Pattern):
    """Blocks of ``rows`` outputs by ``columns`` inputs are kept or pruned as one.

    The weight is seen as a matrix [out, kernel positions * in], inputs fastest. None stands for
    ``channel``: all rows of the layer, or all input channels.

    ``4x1`` on a Linear of shape [4, 2] has two units, its columns::

        weight  1  8      |block| mean  (2.5, 6.5)     one of two pruned  0  8
                2  7                                                      0  7
                3  6                                                      0  6
                4  5                                                      0  5
    """

    rows: int | None
    columns: int | None

    @property
    def density(self) -> float:
        """Every block may go."""
        return 1.0

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``"4x1"``, ``"channelx1"``, ``"1xchannel"``."""
        form = _FORM.fullmatch(text)
        if form is None:
            return None
        rows, columns = (None if side == _CHANNEL else int(side) for side in form.groups())
        if rows == columns is None:
            message = f"The pruning pattern {text!r} would prune whole layers; name a number on one side."
            raise ConfigError(message)
        if 0 in (rows, columns):
            message = f"The pruning pattern {text!r} has an empty block; both numbers must be 1 or more."
            raise ConfigError(message)
        return cls(rows, columns)

    def grid(self, view: MatrixView, reduction: Reduction) -> Grid | str:
        """Lay the blocks over a weight; the reason why not if its sides do not divide."""
        return self._laid(BlockGrid, view, reduction)

    def grid_in_parts(self, view: MatrixView, reduction: Reduction) -> Grid | str:
        """The same with one entry an element, so that blocks can be pruned in parts."""
        return self._laid(BlockElementGrid, view, reduction)

    def _laid(
        self, kind: Callable[[MatrixView, int, int, Reduction], Grid], view: MatrixView, reduction: Reduction
    ) -> Grid | str:
        rows, columns = self.rows or view.height, self.columns or view.channels
        if view.height % rows or view.width % columns:
            return f"a {view.height}x{view.width} weight does not divide into {rows}x{columns} blocks"
        return kind(view, rows, columns, reduction)


@final
class BlockGrid(UnitGrid):
    """Blocks over one weight. Scores and masks have one entry a block.

    Args:
        view: The weight as a matrix.
        rows: Outputs in a block.
        columns: Inputs in a block.
        reduction: How element scores become block scores.
        part_of: Elements of a whole block, if these are only parts of blocks; else 0.
    """

    def __init__(self, view: MatrixView, rows: int, columns: int, reduction: Reduction, part_of: int = 0) -> None:
        self._view = view
        self._rows, self._columns = rows, columns
        self._reduction, self._part_of = reduction, part_of
        # Blocks that span kernel positions are no view of the weight: its columns are flattened first.
        self._spans_kernel = view.channels % columns != 0
        inner = (view.width // columns,) if self._spans_kernel else (*view.sizes[1:-1], view.channels // columns)
        self.mask_shape: tuple[int, ...] = (view.height // rows, *inner)
        self.score_shape: tuple[int, ...] = self.mask_shape
        self.units = math.prod(self.mask_shape)

    def blocks(self, tensor: torch.Tensor) -> torch.Tensor:
        """View (copy if blocks span kernel positions) of shape [out / N, N, ..., columns / M, M]."""
        matrix = self._view.ordered(tensor)
        if self._spans_kernel:
            matrix = matrix.flatten(1)
        rows = torch.unflatten(matrix, 0, (-1, self._rows))
        return torch.unflatten(rows, -1, (-1, self._columns))

    def reduce(self, signed: torch.Tensor, reduction: Reduction | None = None) -> torch.Tensor:
        reduction = reduction or self._reduction
        is_part_of_mean = self._part_of > 0 and reduction == "mean"
        reduction = "sum" if is_part_of_mean else reduction
        blocks = self.blocks(signed)
        blocks = blocks if reduction == "net" else blocks.abs()
        blocks = blocks.squeeze(-1) if self._columns == 1 else _reduced(blocks, -1, reduction)
        blocks = blocks.squeeze(1) if self._rows == 1 else _reduced(blocks, 1, reduction)
        return blocks / self._part_of if is_part_of_mean else blocks

    def apply_(self, tensor: torch.Tensor, mask: torch.Tensor) -> None:
        if self._spans_kernel:
            tensor.mul_(self.expand(mask))
        else:
            self.blocks(tensor).mul_(mask.to(tensor.dtype).unsqueeze(1).unsqueeze(-1))

    def dense_blocks(self, tensor: torch.Tensor) -> DenseBlocks | None:
        values = self._view.ordered(tensor)
        if self._columns != 1 or self._part_of or not values.is_contiguous():
            return None
        return DenseBlocks(values, self._view.width, self._rows)

    def expand(self, mask: torch.Tensor) -> torch.Tensor:
        wide = mask.repeat_interleave(self._rows, 0).repeat_interleave(self._columns, -1)
        return self._view.restored(wide)

    def first_axis(self) -> tuple[int, int] | None:
        if self._view.has_outputs_first:
            return 1, self.mask_shape[0]
        return None if self._spans_kernel else (math.prod(self.mask_shape[:-1]), self.mask_shape[-1])

    def resized(self, length: int) -> BlockGrid:
        rows, columns = self._rows, self._columns
        if self._view.has_outputs_first:
            rows = max(1, min(rows, length))
        else:
            columns = max(1, min(columns, length))
        is_part = (rows, columns) != (self._rows, self._columns)
        part_of = self._rows * self._columns if is_part else 0
        return BlockGrid(self._view.resized(length), rows, columns, self._reduction, part_of)


@final
class BlockElementGrid:
    """Blocks over one weight that can be pruned in parts. Scores and masks have one entry an element, block by block.

    Args:
        view: The weight as a matrix.
        rows: Outputs in a block.
        columns: Inputs in a block.
        reduction: How element scores become block scores.
    """

    def __init__(self, view: MatrixView, rows: int, columns: int, reduction: Reduction) -> None:
        self._blocks = BlockGrid(view, rows, columns, reduction)
        self._view, self._rows, self._columns, self._reduction = view, rows, columns, reduction
        self.units = self._blocks.units
        self.mask_shape: tuple[int, ...] = (self.units, rows * columns)
        self.score_shape: tuple[int, ...] = self.mask_shape

    def reduce(self, signed: torch.Tensor, reduction: Reduction | None = None) -> torch.Tensor:  # one entry an element
        return self._blocks.blocks(signed).movedim(1, -2).abs().reshape(self.score_shape)

    def unit_scores(self, scores: torch.Tensor) -> torch.Tensor:
        return _reduced(scores, -1, self._reduction)

    def mask(self, scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return keep.unsqueeze(-1).repeat(1, scores.shape[-1])

    def zeros_of(self, scores: torch.Tensor) -> torch.Tensor:
        return self.mask(scores, (scores != 0).any(-1))

    def apply_(self, tensor: torch.Tensor, mask: torch.Tensor) -> None:
        tensor.mul_(self.expand(mask))

    def dense_blocks(self, tensor: torch.Tensor) -> DenseBlocks | None:
        return None

    def expand(self, mask: torch.Tensor) -> torch.Tensor:
        blocks = mask.view(*self._blocks.mask_shape, self._rows, self._columns).movedim(-2, 1)
        return self._view.restored(blocks.flatten(-2).flatten(0, 1).contiguous())

    def pruned_units(self, mask: torch.Tensor) -> int:
        return int(torch.count_nonzero(~mask.reshape(-1, self.mask_shape[1]).any(-1)))

    def first_axis(self) -> tuple[int, int] | None:
        return self._blocks.first_axis()

    def resized(self, length: int) -> BlockElementGrid:
        return BlockElementGrid(self._view.resized(length), self._rows, self._columns, self._reduction)


def _reduced(blocks: torch.Tensor, dim: int, reduction: Reduction) -> torch.Tensor:
    if reduction == "max":
        return blocks.amax(dim)
    return blocks.mean(dim) if reduction == "mean" else blocks.sum(dim)
