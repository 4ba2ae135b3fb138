"""One factor for each channel of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from inc_torch import kernels
from inc_torch.inference._codes import kernel_grid
from inc_torch.inference._operations import Operation
from inc_torch.quantizers import InputGrid, decode, encode

__all__ = ["ScaleChannels"]


@final
@dataclass(frozen=True)
class ScaleChannels(Operation):
    """Codes [samples, channels, height, width] times factors [samples, channels, 1, 1]; squeeze and excitation.

    Attributes:
        grid: Of the codes.
        output_grid: Of what comes out; None is float32.
    """

    grid: InputGrid
    output_grid: InputGrid | None = None

    @property
    def input_roles(self) -> tuple[str, ...]:
        return ("input", "factor")

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codes = inputs[0]
        dtype = torch.float32 if self.output_grid is None else torch.uint8
        return (torch.empty(codes.shape, dtype=dtype, device=codes.device, memory_format=torch.channels_last),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codes, factor = inputs
        result = decode(codes, self.grid) * factor
        return (result if self.output_grid is None else encode(result, self.output_grid, self.output_grid.shift),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        output_grid = None if self.output_grid is None else kernel_grid(self.output_grid)
        return kernels.scale_channels(inputs[0], kernel_grid(self.grid), inputs[1], outputs[0], output_grid)
