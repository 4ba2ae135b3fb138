"""Floats to codes and back, and the grid of a tensor."""

from __future__ import annotations

import torch

from inc_torch.kernels._arguments import DynamicRangeArguments, Operation, QuantizeArguments
from inc_torch.kernels._checks import OperandError, check, grid_of, operand, shaped
from inc_torch.kernels._layout import collapse
from inc_torch.kernels._program import Step
from inc_torch.kernels._types import Grid

__all__ = ["dequantize", "dynamic_range", "quantize"]

_DIMENSIONS = 4


def _layout(arguments: QuantizeArguments, input: torch.Tensor, output: torch.Tensor, step: str) -> None:
    """Write sizes and strides: the last dimension dense in both, or pixels of planes to channels."""
    sizes, (reads, writes) = collapse((input, output))
    if not sizes or writes[-1] != 1:
        sizes, reads, writes = [*sizes, 1], [*reads, 1], [*writes, 1]
    if reads[-1] != 1 and sizes[-1] != 1:
        pixels = len(sizes) > 1 and reads[-2] == 1 and input.dtype != torch.uint8
        layout = f"of strides {input.stride()} for an output of strides {output.stride()}"
        check(pixels, step, "input", layout, "a dense last dimension, or planes that become channels-last")
    check(len(sizes) <= _DIMENSIONS, step, "input", f"of strides {input.stride()}", "a simpler layout")
    missing = _DIMENSIONS - len(sizes)
    arguments.sizes[:] = [1] * missing + sizes
    arguments.input_strides[:] = [0] * missing + reads
    arguments.output_strides[:] = [0] * missing + writes


def quantize(
    input: torch.Tensor, output: torch.Tensor, grid: Grid | None, *, dynamic: torch.Tensor | None = None
) -> Step:
    """Build the rounding of values to codes, as `inc_torch.quantizers` rounds: half to even, saturating.

    Args:
        input: float32 or bfloat16 of any shape.
        output: uint8 of the same shape. Its memory order may be another one: ``[n, c, h, w]`` planes become
            channels-last.
        grid: Meaning of the codes; None with ``dynamic``.
        dynamic: float32 [2]: scale and zero point, read when the step runs.

    Returns:
        A step with the roles "input", "output" and, where given, "dynamic".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "quantize"
    arguments = QuantizeArguments(operation=Operation.QUANTIZE)
    arguments.input_type = operand(input, step, "input", (torch.float32, torch.bfloat16))
    arguments.output_type = operand(output, step, "output", (torch.uint8,))
    shaped(output, step, "output", input.shape)
    if (grid is None) == (dynamic is None):
        message = "inc_torch.kernels.quantize: expected either a grid or `dynamic`, got both or none."
        raise OperandError(message)
    if dynamic is not None:
        operand(dynamic, step, "dynamic", (torch.float32,))
        check(dynamic.shape == (2,) and dynamic.is_contiguous(), step, "dynamic", tuple(dynamic.shape), "two numbers")
    else:
        known = grid_of(grid, torch.uint8, step, "grid")
        arguments.scale, arguments.zero = known.scale, known.zero_point
    _layout(arguments, input, output, step)
    return Step(step, arguments, {"input": input, "output": output, "dynamic": dynamic})


def dequantize(input: torch.Tensor, grid: Grid, output: torch.Tensor) -> Step:
    """Build ``output = (input - zero_point) * scale``.

    Args:
        input: uint8 of any shape.
        grid: Meaning of the codes.
        output: float32 or bfloat16 of the same shape and order of dimensions in memory.

    Returns:
        A step with the roles "input" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "dequantize"
    arguments = QuantizeArguments(operation=Operation.QUANTIZE)
    arguments.input_type = operand(input, step, "input", (torch.uint8,))
    arguments.output_type = operand(output, step, "output", (torch.float32, torch.bfloat16))
    shaped(output, step, "output", input.shape)
    known = grid_of(grid, torch.uint8, step, "grid")
    arguments.scale, arguments.zero = known.scale, known.zero_point
    _layout(arguments, input, output, step)
    return Step(step, arguments, {"input": input, "output": output})


def dynamic_range(input: torch.Tensor, result: torch.Tensor, symmetric: bool) -> Step:
    """Build the search for the grid that fits the values, `inc_torch.quantizers`' dynamic one.

    A tensor with a value that is not finite has no grid: its scale becomes NaN, and so does what is computed with it.

    Args:
        input: float32, [..., k] with dense rows at one distance.
        result: float32 [2], becomes scale and zero point.
        symmetric: Whether the zero point is 128.

    Returns:
        A step with the roles "input" and "result".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "dynamic_range"
    arguments = DynamicRangeArguments(operation=Operation.DYNAMIC_RANGE, symmetric=int(symmetric))
    operand(input, step, "input", (torch.float32,))
    operand(result, step, "result", (torch.float32,))
    check(result.shape == (2,) and result.is_contiguous(), step, "result", tuple(result.shape), "two numbers")
    arguments.rows, arguments.columns, arguments.stride = _rows(input, step)
    return Step(step, arguments, {"input": input, "result": result})


def _rows(input: torch.Tensor, step: str) -> tuple[int, int, int]:
    sizes, (strides,) = collapse((input,))
    if not sizes:
        return 1, 1, 1
    simple = strides[-1] == 1 and len(sizes) <= 2  # noqa: PLR2004
    check(simple, step, "input", f"of strides {input.stride()}", "dense rows at one distance")
    if len(sizes) == 1:
        piece = 2048
        whole = sizes[0] % piece == 0
        return (sizes[0] // piece, piece, piece) if whole else (1, sizes[0], sizes[0])
    return sizes[0], sizes[1], strides[0]
