"""A factor and a shift for each channel of images: batch normalization by running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from inc_torch import kernels
from inc_torch.inference._codes import kernel_grid
from inc_torch.inference._concatenation import joined_shape, of_parts, slices_like
from inc_torch.inference._operations import Operation, activated
from inc_torch.quantizers import InputGrid, decode, encode

__all__ = ["Affine"]


@final
@dataclass(frozen=True)
class Affine(Operation):
    """``activation(x * factor + shift)`` of codes x, whose channels may come in several parts, each of its own grid.

    Inputs are the parts [samples, channels of the part, height, width], channels last, then factor and shift [channels
    of all parts], which must be constants: steps read them where they lay when they were built.

    Attributes:
        grids: Of the parts.
        activation: A name of `ACTIVATIONS`.
        output_grid: Of what comes out; None is float32.
    """

    grids: tuple[InputGrid, ...]
    activation: str = "none"
    output_grid: InputGrid | None = None

    @property
    def input_roles(self) -> tuple[str, ...]:
        return tuple(f"part {index}" for index in range(len(self.grids)))

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = inputs[: len(self.grids)]
        dtype = torch.float32 if self.output_grid is None else torch.uint8
        layout = torch.channels_last
        return (torch.empty(joined_shape(parts), dtype=dtype, device=parts[0].device, memory_format=layout),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *parts, factor, shift = inputs
        values = torch.cat([decode(part, grid) for part, grid in zip(parts, self.grids, strict=True)], 1)
        values = activated(values * factor.view(-1, 1, 1) + shift.view(-1, 1, 1), self.activation)
        return (values if self.output_grid is None else encode(values, self.output_grid, self.output_grid.shift),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        *parts, factor, shift = inputs
        slices = zip(
            slices_like(parts, outputs[0], 1), slices_like(parts, factor), slices_like(parts, shift), strict=True
        )
        activation = kernels.Activation[self.activation.upper()]
        output_grid = None if self.output_grid is None else kernel_grid(self.output_grid)
        steps = [
            kernels.affine(part, its_factor, its_shift, place, activation, kernel_grid(grid), output_grid)
            for part, grid, (place, its_factor, its_shift) in zip(parts, self.grids, slices, strict=True)
        ]
        return of_parts(steps, parts, outputs[0])
