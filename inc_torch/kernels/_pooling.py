"""Pooling of channels-last codes."""

from __future__ import annotations

import torch

from inc_torch.kernels._arguments import Operation, PoolArguments
from inc_torch.kernels._checks import check, even_pixels, grid_of, operand, rows_of, shaped
from inc_torch.kernels._epilogue import inverse_and_shift
from inc_torch.kernels._program import Step
from inc_torch.kernels._types import Grid
from inc_torch.kernels._window import Pair, Window, fill_image

__all__ = ["avg_pool2d", "global_avg_pool", "max_pool2d"]


def _arguments(step: str, operation: Operation, input: torch.Tensor, window: Window) -> tuple[PoolArguments, list[int]]:
    operand(input, step, "input", (torch.uint8,))
    fits = all(2 * border <= size for border, size in zip(window.padding, window.kernel, strict=True))
    check(fits, step, "padding", window.padding, f"at most half of the kernel {window.kernel}")
    arguments = PoolArguments(operation=operation)
    shape = fill_image(arguments, input, window, step)
    arguments.batch = shape[0]
    return arguments, list(shape)


def max_pool2d(
    input: torch.Tensor,
    output: torch.Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    dilation: Pair = 1,
    *,
    ceil_mode: bool = False,
) -> Step:
    """Build the greatest code of each window; the grid stays.

    Args:
        input: uint8 [n, c, h, w] in channels-last memory.
        output: uint8 [n, c, h', w'], channels-last, pixels at even distances.
        kernel: One number or (height, width), like the others.
        stride: Distance of windows.
        padding: Border that holds no value; at most half of the kernel.
        dilation: Distance of taps.
        ceil_mode: Whether a last window that reaches beyond the border counts, as in torch.

    Returns:
        A step with the roles "input" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "max_pool2d"
    window = Window.of(kernel, stride, padding, dilation, step, ceil_mode=ceil_mode)
    arguments, shape = _arguments(step, Operation.MAX_POOL, input, window)
    operand(output, step, "output", (torch.uint8,))
    shaped(output, step, "output", shape)
    arguments.output_stride = even_pixels(output, step, "output")
    return Step(step, arguments, {"input": input, "output": output})


def _fill_grids(
    arguments: PoolArguments, step: str, grid: Grid, output: torch.Tensor, output_grid: Grid | None
) -> None:
    known = grid_of(grid, torch.uint8, step, "grid")
    arguments.scale, arguments.zero = known.scale, known.zero_point
    arguments.output_type = operand(output, step, "output", (torch.uint8, torch.float32))
    arguments.inverse, arguments.shift = inverse_and_shift(grid_of(output_grid, output.dtype, step, "output_grid"))


def avg_pool2d(
    input: torch.Tensor,
    grid: Grid,
    output: torch.Tensor,
    output_grid: Grid | None,
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
    *,
    count_include_pad: bool = True,
) -> Step:
    """Build the mean of each window.

    Args:
        input: uint8 [n, c, h, w] in channels-last memory.
        grid: Meaning of the input.
        output: uint8 or float32 [n, c, h', w'], channels-last, pixels at even distances.
        output_grid: Meaning of a uint8 output.
        kernel: One number or (height, width), like the others.
        stride: Distance of windows.
        padding: Border of zeros; at most half of the kernel.
        count_include_pad: Whether the border counts in the mean.

    Returns:
        A step with the roles "input" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "avg_pool2d"
    window = Window.of(kernel, stride, padding, 1, step)
    arguments, shape = _arguments(step, Operation.AVERAGE_POOL, input, window)
    _fill_grids(arguments, step, grid, output, output_grid)
    arguments.count_padding = int(count_include_pad)
    shaped(output, step, "output", shape)
    arguments.output_stride = even_pixels(output, step, "output")
    return Step(step, arguments, {"input": input, "output": output})


def global_avg_pool(input: torch.Tensor, grid: Grid, output: torch.Tensor, output_grid: Grid | None) -> Step:
    """Build the mean of each channel of each image.

    Args:
        input: uint8 [n, c, h, w] in channels-last memory.
        grid: Meaning of the input.
        output: uint8 or float32 [n, c] or [n, c, 1, 1].
        output_grid: Meaning of a uint8 output.

    Returns:
        A step with the roles "input" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "global_avg_pool"
    check(input.dim() == 4, step, "input", f"of shape {tuple(input.shape)}", "[n, c, h, w]")  # noqa: PLR2004
    whole = Window((input.shape[2], input.shape[3]), (1, 1), (0, 0), (1, 1))
    arguments, shape = _arguments(step, Operation.GLOBAL_AVERAGE_POOL, input, whole)
    _fill_grids(arguments, step, grid, output, output_grid)
    flat = output.dim() == 2  # noqa: PLR2004
    shaped(output, step, "output", shape[:2] if flat else shape)
    arguments.output_stride = rows_of(output if flat else output[:, :, 0, 0], step, "output")[2]
    return Step(step, arguments, {"input": input, "output": output})
