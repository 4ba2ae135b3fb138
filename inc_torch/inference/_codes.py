"""Between floats and codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch

from inc_torch import kernels
from inc_torch.inference._operations import Operation
from inc_torch.quantizers import InputGrid, QuantScheme, decode, dynamic_grid, encode

__all__ = ["Decode", "Encode", "EncodeInRange", "FindRange", "Requantize", "kernel_grid"]

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


@final
@dataclass(frozen=True)
class Requantize(Operation):
    """Codes of one grid to codes of another, laid out alike."""

    grid: InputGrid
    output_grid: InputGrid

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        return (torch.empty_like(codes),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        return (encode(decode(codes, self.grid), self.output_grid, self.output_grid.shift),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        return kernels.requantize(inputs[0], kernel_grid(self.grid), outputs[0], kernel_grid(self.output_grid))


@final
@dataclass(frozen=True)
class FindRange(Operation):
    """The grid that fits the values that came: float32 [2], scale and zero point; NaN if one of them is not finite.

    Attributes:
        symmetric: The zero point is 128.
    """

    symmetric: bool

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (values,) = inputs
        return (torch.empty(2, device=values.device),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (values,) = inputs
        grid = dynamic_grid(values, QuantScheme(symmetric_input=self.symmetric, dynamic=True))
        return (torch.tensor([math.nan, 0.0] if grid is None else [grid.scale, float(grid.zero_point)]),)

    @property
    def output_roles(self) -> tuple[str, ...]:
        return ("result",)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        return kernels.dynamic_range(inputs[0], outputs[0], self.symmetric)


@final
@dataclass(frozen=True)
class EncodeInRange(Operation):
    """Floats to uint8 codes of the grid that `FindRange` found."""

    @property
    def input_roles(self) -> tuple[str, ...]:
        return ("input", "dynamic")

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.empty_like(inputs[0], dtype=torch.uint8),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, found = inputs
        scale, zero_point = found.tolist()
        if math.isnan(scale):
            return (torch.zeros_like(values, dtype=torch.uint8),)  # whatever they are, what is computed of them is NaN
        grid = InputGrid(scale, int(zero_point), QuantScheme().top)
        return (encode(values, grid, grid.shift),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        return kernels.quantize(inputs[0], outputs[0], None, dynamic=inputs[1])
