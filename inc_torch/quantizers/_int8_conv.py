"""Convolutions on int8 codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final, final

import torch
import torch.nn.functional as F

from inc_torch.quantizers._codes import encode
from inc_torch.quantizers._int8_module import (
    NO_POST_OPERATION,
    PLAIN_OUTPUT,
    WRITTEN_DTYPES,
    Int8Operator,
    Plan,
    fits_kernel,
    output_dtype,
)

__all__ = ["Int8Conv1d", "Int8Conv2d", "Int8Conv3d", "convolve", "is_misread"]

_CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}


def convolve(
    plan: Plan,
    codes: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Run the int8 convolution of a plan whose kernel exists on the codes of an input; channels last.

    The weight is packed for the first spatial shape, and anew for another one that comes twice in a row. A packing
    gives the right result for every shape and is fastest for its own; making one costs more than a forward, so
    shapes that alternate must not cause it.
    """
    space = tuple(codes.shape[2:])
    came_twice, plan.last_seen = space == plan.last_seen, space
    if plan.packed is None or (came_twice and space != plan.packed_for):
        plan.packed_for = space
        plan.packed = torch.ops.onednn.qconv_prepack(
            plan.weight,
            plan.weight_scale,
            plan.grid.scale,
            plan.grid.zero_point,
            stride,
            padding,
            dilation,
            groups,
            list(codes.shape),
        )
    operator: Callable[..., torch.Tensor] = plan.operator  # type: ignore[assignment]  # the caller looked
    return operator(
        codes,
        plan.grid.scale,
        plan.grid.zero_point,
        plan.packed,
        plan.weight_scale,
        plan.weight_zero_point,
        plan.bias,
        stride,
        padding,
        dilation,
        groups,
        *PLAIN_OUTPUT,
        WRITTEN_DTYPES.get(dtype, dtype),
        *NO_POST_OPERATION,
    ).to(dtype)


def is_misread(values: torch.Tensor) -> bool:
    """Whether the kernel takes the layout of an input for another one: it computes noise on volumes of one plane.

    Seen in torch 2.13, whatever their strides: with one channel on every processor; on those with AMX also with two,
    three and five, but not with four and multiples of it. Two planes are read right.
    """
    return values.dim() == _VOLUME_RANK and values.shape[2] == 1


_VOLUME_RANK: Final = 5


class _Int8Conv(Int8Operator):
    """Convolution on int8 codes of input and weight, with every padding that torch has."""

    operator_name = "qconv_pointwise"
    rank: ClassVar[int]

    in_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: Sequence[int]

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Quantize the input, convolve, and return the dtype of the input, or that of autocast."""
        if input.dim() == self.rank + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        plan = self._current_plan()
        dtype = output_dtype(input)
        smoothed = input if plan.factor is None else self._smoothed(input)
        values, padding = self._padded(smoothed)
        if plan.operator is None or not fits_kernel(values, dtype) or not self._is_valid(values, padding):
            return self._in_float(values, dtype, padding)
        codes = encode(values, plan.grid, plan.shift)
        result = convolve(plan, codes, self.stride, padding, self.dilation, self.groups, dtype)
        # The kernel writes channels last whatever it reads; who gave rows may call .view() on the result.
        return result if _is_channels_last(input) else result.contiguous()

    def _along_input(self, channels: torch.Tensor) -> torch.Tensor:
        return channels.view(-1, *[1] * self.rank)

    def _padded(self, input: torch.Tensor) -> tuple[torch.Tensor, Sequence[int]]:  # noqa: A002  as in forward
        """Put in by hand what the kernel cannot: border values, or zeros on one side more than on the other."""
        around = self._reversed_padding_repeated_twice
        before, after = around[-2::-2], around[-1::-2]
        if self.padding_mode == "zeros" and before == after:
            return input, before
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(input, list(around), mode=mode), [0] * self.rank

    def _is_valid(self, values: torch.Tensor, padding: Sequence[int]) -> bool:
        """Whether torch would take ``values``; the kernel computes something even where the window does not fit.

        Nor may the kernel misread them.
        """
        if values.dim() != self.rank + 2 or values.shape[1] != self.in_channels or is_misread(values):
            return False
        windows = (dilation * (size - 1) for size, dilation in zip(self.kernel_size, self.dilation, strict=True))
        spaces = zip(values.shape[2:], padding, windows, strict=True)
        return all(size + 2 * around > window for size, around, window in spaces)

    def _float_operation(self, values: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
        # torch.conv1d and its like differ in their type stubs only by the rank of their arguments.
        convolve: Callable[..., torch.Tensor] = (torch.conv1d, torch.conv2d, torch.conv3d)[self.rank - 1]
        return convolve(values, weight, self.bias, self.stride, list(padding), self.dilation, self.groups)


def _is_channels_last(input: torch.Tensor) -> bool:  # noqa: A002  as in forward
    if input.is_contiguous() or input.dim() not in _CHANNELS_LAST:
        return False
    return input.is_contiguous(memory_format=_CHANNELS_LAST[input.dim()])


@final
class Int8Conv1d(_Int8Conv):
    """`torch.nn.Conv1d` on int8 codes."""

    kind = replaces = "conv1d"
    rank = 1


@final
class Int8Conv2d(_Int8Conv):
    """`torch.nn.Conv2d` on int8 codes."""

    kind = replaces = "conv2d"
    rank = 2


@final
class Int8Conv3d(_Int8Conv):
    """`torch.nn.Conv3d` on int8 codes."""

    kind = replaces = "conv3d"
    rank = 3
