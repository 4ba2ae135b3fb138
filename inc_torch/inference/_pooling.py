"""Pooling of codes, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F

from inc_torch import kernels
from inc_torch.inference._codes import kernel_grid
from inc_torch.inference._operations import Operation
from inc_torch.quantizers import InputGrid, decode, encode

__all__ = ["AverageOfCodes", "AveragePoolOfCodes", "MaxPoolOfCodes"]


@final
@dataclass(frozen=True)
class MaxPoolOfCodes(Operation):
    """The greatest code in each window: codes of the same grid, as codes are in the order of their values."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        shape = self._pooled(torch.empty(codes.shape, device="meta")).shape
        layout = torch.channels_last
        return (torch.empty(shape, dtype=torch.uint8, device=codes.device, memory_format=layout),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        return (self._pooled(codes.float()).to(torch.uint8),)

    def _pooled(self, values: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(values, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        return kernels.max_pool2d(
            inputs[0], outputs[0], self.kernel_size, self.stride, self.padding, self.dilation, ceil_mode=self.ceil_mode
        )


@final
@dataclass(frozen=True)
class AverageOfCodes(Operation):
    """The mean over height and width, as float32 or as codes.

    Attributes:
        grid: Of the codes that go in.
        keeps_dimensions: The output is [samples, channels, 1, 1].
        output_grid: Of what comes out; None is float32.
    """

    grid: InputGrid
    keeps_dimensions: bool
    output_grid: InputGrid | None = None

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        shape = (*codes.shape[:2], *(1, 1)[: 2 * self.keeps_dimensions])
        dtype = torch.float32 if self.output_grid is None else torch.uint8
        return (torch.empty(shape, dtype=dtype, device=codes.device),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        values = decode(codes, self.grid).mean((2, 3), keepdim=self.keeps_dimensions)
        return (values if self.output_grid is None else encode(values, self.output_grid, self.output_grid.shift),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        output_grid = None if self.output_grid is None else kernel_grid(self.output_grid)
        return kernels.global_avg_pool(inputs[0], kernel_grid(self.grid), outputs[0].flatten(1), output_grid)


@final
@dataclass(frozen=True)
class AveragePoolOfCodes(Operation):
    """The mean of each window, as float32 or as codes.

    Attributes:
        grid: Of the codes that go in.
        kernel_size: Down, right; the next two too.
        stride: Distance of windows.
        padding: Border of zeros.
        count_include_pad: The border counts in the mean.
        output_grid: Of what comes out; None is float32.
    """

    grid: InputGrid
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    count_include_pad: bool
    output_grid: InputGrid | None = None

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        shape = self._pooled(torch.empty(codes.shape, device="meta")).shape
        dtype = torch.float32 if self.output_grid is None else torch.uint8
        return (torch.empty(shape, dtype=dtype, device=codes.device, memory_format=torch.channels_last),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (codes,) = inputs
        values = self._pooled(decode(codes, self.grid))
        return (values if self.output_grid is None else encode(values, self.output_grid, self.output_grid.shift),)

    def _pooled(self, values: torch.Tensor) -> torch.Tensor:
        include = self.count_include_pad
        return F.avg_pool2d(values, self.kernel_size, self.stride, self.padding, count_include_pad=include)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        return kernels.avg_pool2d(
            inputs[0],
            kernel_grid(self.grid),
            outputs[0],
            None if self.output_grid is None else kernel_grid(self.output_grid),
            self.kernel_size,
            self.stride,
            self.padding,
            count_include_pad=self.count_include_pad,
        )
