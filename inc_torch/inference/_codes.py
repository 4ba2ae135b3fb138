"""Between floats and codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch

from inc_torch import kernels
from inc_torch.inference._operations import Operation
from inc_torch.quantizers import InputGrid, decode, encode

__all__ = ["Decode", "Encode", "kernel_grid"]

_IMAGE_RANK: Final = 4


def kernel_grid(grid: InputGrid) -> kernels.Grid:
    """The grid as the compiled kernels take it."""
    return kernels.Grid(grid.scale, grid.zero_point)


@final
@dataclass(frozen=True)
class Encode(Operation):
    """Floats to uint8 codes, laid out like the floats.

    Attributes:
        grid: Meaning of the codes.
        channels_last: Images are laid out channels last, whatever the floats are.
    """

    grid: InputGrid
    channels_last: bool = False

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (values,) = inputs
        layout = torch.channels_last if self.channels_last and values.dim() == _IMAGE_RANK else torch.preserve_format
        return (torch.empty_like(values, dtype=torch.uint8, memory_format=layout),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (values,) = inputs
        return (encode(values, self.grid, self.grid.shift),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        return kernels.quantize(inputs[0], outputs[0], kernel_grid(self.grid))


@final
@dataclass(frozen=True)
class Decode(Operation):
    """uint8 codes to float32."""

    grid: InputGrid

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        return (torch.empty_like(codes, dtype=torch.float32),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        return (decode(codes, self.grid),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        return kernels.dequantize(inputs[0], kernel_grid(self.grid), outputs[0])
