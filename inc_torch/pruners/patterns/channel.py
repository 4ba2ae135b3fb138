"""Whole input channels: what a layer takes of one input, for all outputs and at all kernel positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch

from inc_torch.pruners._base import PATTERNS, Grid, Pattern, Reduction
from inc_torch.pruners._matrix import MatrixView
from inc_torch.pruners._unit_grid import UnitGrid

_FORM = "channel"


@final
@PATTERNS.register(_FORM, summary="whole inputs of a layer, for all outputs and kernel positions")
@dataclass(frozen=True, slots=True)
class Channel(Pattern):
    """Inputs that are kept or pruned as one, so that nothing has to be computed any more for those that go.

    On a Linear this is ``channelx1``. On a convolution ``channelx1`` prunes single kernel positions (as in INC), this
    all of them. INC has no such pattern.
    """

    @property
    def density(self) -> float:
        """Every input may go."""
        return 1.0

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``"channel"``."""
        return cls() if text == _FORM else None

    def grid(self, view: MatrixView, reduction: Reduction) -> Grid | str:
        """Lay inputs over any weight."""
        return ChannelGrid(view, reduction)


@final
class ChannelGrid(UnitGrid):
    """Inputs of one weight. Scores and masks have one entry an input.

    Args:
        view: The weight as a matrix.
        reduction: How element scores become those of inputs.
        part_of: Elements of a whole input, if these are only parts of them; else 0.
    """

    def __init__(self, view: MatrixView, reduction: Reduction, part_of: int = 0) -> None:
        self._view, self._reduction, self._part_of = view, reduction, part_of
        self.units = view.channels
        self.mask_shape: tuple[int, ...] = (self.units,)
        self.score_shape: tuple[int, ...] = self.mask_shape

    def reduce(self, signed: torch.Tensor, reduction: Reduction | None = None) -> torch.Tensor:
        reduction = reduction or self._reduction
        inputs = self._view.ordered(signed).flatten(0, -2)
        if reduction == "net":
            return inputs.sum(0)
        if reduction == "max":
            return inputs.abs().amax(0) if len(inputs) else inputs.new_zeros(self.units)
        total = inputs.abs().sum(0)
        return total / (self._part_of or len(inputs)) if reduction == "mean" else total

    def apply_(self, tensor: torch.Tensor, mask: torch.Tensor) -> None:
        self._view.ordered(tensor).mul_(mask.to(tensor.dtype))

    def expand(self, mask: torch.Tensor) -> torch.Tensor:
        return self._view.restored(mask.expand(self._view.sizes).contiguous())

    def first_axis(self) -> tuple[int, int] | None:
        return (1, 1) if self._view.has_outputs_first else (1, self.units)

    def resized(self, length: int) -> ChannelGrid:
        view = self._view.resized(length)
        part_of = self._view.height * self._view.width // self.units if self._view.has_outputs_first else 0
        return ChannelGrid(view, self._reduction, part_of)
