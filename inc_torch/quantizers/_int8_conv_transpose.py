"""Transposed convolutions on int8 codes, as plain ones.

With stride ``s`` the output at ``q * s + r`` is the sum over ``m`` of ``weight[m * s + r] * input[q - m]``: for each
phase ``r`` a plain convolution with every ``s``-th value of the kernel. So one plain convolution computes all phases as
channels of their own, and its outputs are interleaved. No product with a zero is computed that a kernel divisible by
the stride does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.quantizers._codes import encode
from inc_torch.quantizers._int8_conv import convolve, is_misread
from inc_torch.quantizers._int8_module import Int8Operator, Plan, fits_kernel, output_dtype

__all__ = ["Int8ConvTranspose1d", "Int8ConvTranspose2d", "Int8ConvTranspose3d"]


class _Int8ConvTranspose(Int8Operator):
    """Transposed convolution on int8 codes of input and weight."""

    operator_name = "qconv_pointwise"
    rank: ClassVar[int]

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def kernel(self) -> str:
        return "float: the kernel has no dilation" if max(self.dilation) > 1 else super().kernel

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:  # noqa: A002
        """Quantize the input, convolve, and return the dtype of the input, or that of autocast."""
        if input.dim() == self.rank + 1:
            return self.forward(input.unsqueeze(0), output_size).squeeze(0)
        plan = self._current_plan()
        dtype = output_dtype(input)
        values = input if plan.factor is None else self._smoothed(input)
        find_padding: Callable[..., list[int]] = nn.modules.conv._ConvTransposeNd._output_padding
        output_padding = find_padding(
            self, values, output_size, self.stride, self.padding, self.kernel_size, self.rank, self.dilation
        )
        if plan.operator is None or not fits_kernel(values, dtype) or not self._is_valid(values, output_padding):
            return self._in_float(values, dtype, output_padding)
        return self._interleaved(values, output_padding, plan, dtype)

    def _is_valid(self, values: torch.Tensor, output_padding: Sequence[int]) -> bool:
        """Whether torch takes ``values`` and the kernel reads them right; in float others get a result or an error."""
        if values.dim() != self.rank + 2 or values.shape[1] != self.in_channels or is_misread(values):
            return False
        fits = all(extra < stride for extra, stride in zip(output_padding, self.stride, strict=True))
        return fits and all(size > 0 for size in self._output_space(values, output_padding))

    def _output_space(self, values: torch.Tensor, output_padding: Sequence[int]) -> list[int]:
        sizes = zip(values.shape[2:], self.stride, self.padding, self.kernel_size, output_padding, strict=True)
        return [(size - 1) * stride - 2 * cut + kernel + extra for size, stride, cut, kernel, extra in sizes]

    def _interleaved(
        self, values: torch.Tensor, output_padding: Sequence[int], plan: Plan, dtype: torch.dtype
    ) -> torch.Tensor:
        rank, strides = self.rank, self.stride
        space = self._output_space(values, output_padding)
        taps = plan.weight.shape[2:]
        ends = [cut + size for cut, size in zip(self.padding, space, strict=True)]
        reached = [(size + tap - 1) * stride for size, tap, stride in zip(values.shape[2:], taps, strides, strict=True)]
        # output_padding may reach beyond what the kernel does; zeros at the end of the input reach as far.
        missing = [-(-max(0, end - reach) // stride) for end, reach, stride in zip(ends, reached, strides, strict=True)]
        if any(missing):
            values = F.pad(values, [*chain.from_iterable((0, more) for more in reversed(missing))])
        codes = encode(values, plan.grid, plan.shift)
        ones = [1] * rank
        phases = convolve(plan, codes, ones, [tap - 1 for tap in taps], ones, self.groups, dtype)
        grown = phases.shape[2:]
        split = phases.reshape(len(phases), self.out_channels, *strides, *grown)
        order = [0, 1, *chain.from_iterable((2 + rank + axis, 2 + axis) for axis in range(rank))]
        sizes = [size * stride for size, stride in zip(grown, strides, strict=True)]
        whole = split.permute(order).reshape(len(phases), self.out_channels, *sizes)
        for axis, (begin, size) in enumerate(zip(self.padding, space, strict=True)):
            whole = whole.narrow(2 + axis, begin, size)
        return whole.contiguous()

    def _new_plan(self) -> Plan:
        plan = super()._new_plan()
        if max(self.dilation) > 1:
            return replace(plan, operator=None)
        phases = torch.Size(self.stride).numel()
        scale = plan.weight_scale.repeat_interleave(phases)
        return replace(
            plan,
            weight=_phase_kernels(plan.weight, self.stride),
            weight_scale=scale,
            weight_zero_point=torch.zeros_like(scale, dtype=torch.int32),
            bias=None if plan.bias is None else plan.bias.repeat_interleave(phases),
        )

    def _along_input(self, channels: torch.Tensor) -> torch.Tensor:
        return channels.view(-1, *[1] * self.rank)

    def _float_operation(self, values: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
        outputs, inputs, *kernel = weight.shape
        grouped = weight.view(self.groups, outputs // self.groups, inputs, *kernel).transpose(1, 2)
        convolve_back: Callable[..., torch.Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[
            self.rank - 1
        ]
        return convolve_back(
            values,
            grouped.reshape(self.in_channels, outputs // self.groups, *kernel),
            self.bias,
            self.stride,
            self.padding,
            list(padding),
            self.groups,
            self.dilation,
        )


def _phase_kernels(codes: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """Turn [out, in, *kernel] into the kernels [out * phases, in, *taps] of the plain convolution, phases innermost."""
    outputs, inputs, *kernel = codes.shape
    rank = len(kernel)
    taps = [-(-size // step) for size, step in zip(kernel, stride, strict=True)]
    more = [tap * step - size for tap, step, size in zip(taps, stride, kernel, strict=True)]
    filled = F.pad(codes, [*chain.from_iterable((0, count) for count in reversed(more))])
    split = filled.view(outputs, inputs, *chain.from_iterable(zip(taps, stride, strict=True)))
    order = [0, *(3 + 2 * axis for axis in range(rank)), 1, *(2 + 2 * axis for axis in range(rank))]
    arranged = split.permute(order).flip([*range(2 + rank, 2 + 2 * rank)])
    return arranged.reshape(outputs * torch.Size(stride).numel(), inputs, *taps).contiguous()


@final
class Int8ConvTranspose1d(_Int8ConvTranspose):
    """`torch.nn.ConvTranspose1d` on int8 codes."""

    kind = replaces = "conv_transpose1d"
    rank = 1


@final
class Int8ConvTranspose2d(_Int8ConvTranspose):
    """`torch.nn.ConvTranspose2d` on int8 codes."""

    kind = replaces = "conv_transpose2d"
    rank = 2


@final
class Int8ConvTranspose3d(_Int8ConvTranspose):
    """`torch.nn.ConvTranspose3d` on int8 codes."""

    kind = replaces = "conv_transpose3d"
    rank = 3
