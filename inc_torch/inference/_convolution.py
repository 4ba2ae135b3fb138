"""Convolutions on codes, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F

from inc_torch import kernels
from inc_torch.inference._codes import kernel_grid
from inc_torch.inference._product import ProductOnCodes
from inc_torch.quantizers import NO_POST_OPERATION, PLAIN_OUTPUT, InputGrid

__all__ = ["ConvOnCodes"]


@final
@dataclass(frozen=True, eq=False)
class ConvOnCodes(ProductOnCodes):
    """``activation(conv(x, W) + b + residual)``: codes and residuals [samples, channels, height, width].

    Everything is laid out channels last.

    Attributes:
        stride: Down, right; the others too.
        padding: With zeros: above and below, left and right.
        dilation: Of the window.
        groups: Each output reads the inputs of its group.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codes = inputs[0]
        size = [
            (length + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
            for length, kernel, stride, padding, dilation in zip(
                codes.shape[2:], self.weights.window, self.stride, self.padding, self.dilation, strict=True
            )
        ]
        shape = (codes.shape[0], len(self.weights.scale), *size)
        layout = torch.channels_last
        return (torch.empty(shape, dtype=self._written_dtype, device=codes.device, memory_format=layout),)

    def _product(self, codes: torch.Tensor, grid: InputGrid) -> torch.Tensor:
        weights = self.weights
        codes, padding = self._padded(codes, grid.zero_point)
        product: torch.Tensor = torch.ops.onednn.qconv_pointwise(
            codes,
            grid.scale,
            grid.zero_point,
            weights.prepacked_conv(grid, self.stride, padding, self.dilation, self.groups, codes.shape),
            weights.scale,
            weights.zero_points,
            weights.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            *PLAIN_OUTPUT,
            torch.float32,
            *NO_POST_OPERATION,
        )
        return product

    def _padded(self, codes: torch.Tensor, zero: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Put in by hand the zeros that oneDNN cannot put on one side more than on the other."""
        (above, below), (left, right) = self.padding
        if above == below and left == right:
            return codes, (above, left)
        return F.pad(codes, (left, right, above, below), value=zero), (0, 0)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        return kernels.conv2d(
            inputs[0],
            self.weights.packed_conv,
            kernel_grid(self._grid(inputs[1:])),
            self.weights.scale,
            self.weights.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            outputs[0],
            residual=inputs[1] if len(inputs) > 1 else None,
            **self._kernel_options(),
        )
