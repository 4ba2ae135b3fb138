"""Sums, products and activations of whole tensors."""

from __future__ import annotations

import torch

from inc_torch.kernels._arguments import ElementwiseArguments, Operation
from inc_torch.kernels._checks import check, even_pixels, grid_of, operand, shaped, vector
from inc_torch.kernels._epilogue import FLOATS_AND_CODES, inverse_and_shift
from inc_torch.kernels._layout import rows_and_columns
from inc_torch.kernels._program import Step
from inc_torch.kernels._types import Activation, Clamp, Grid, in_numbers

__all__ = ["activation", "add", "affine", "gated", "interleave", "requantize", "scale_channels"]

_Operand = tuple[str, torch.Tensor, Grid | None]


def _arguments(
    step: str,
    operation: Operation,
    operands: tuple[_Operand, ...],
    function: Activation | Clamp,
    channel: int | None = None,
) -> ElementwiseArguments:
    """Check one or two operands and the output, which comes last, and write all but addresses."""
    arguments = ElementwiseArguments(operation=operation)
    fields = ("first", "second", "output") if len(operands) == 3 else ("first", "output")  # noqa: PLR2004
    for field, (name, tensor, grid) in zip(fields, operands, strict=True):
        setattr(arguments, f"{field}_type", operand(tensor, step, name, FLOATS_AND_CODES))
        shaped(tensor, step, name, operands[0][1].shape)
        known = grid_of(grid, tensor.dtype, step, f"the grid of {name}")
        if field == "output":
            arguments.inverse, arguments.shift = inverse_and_shift(known)
        else:
            setattr(arguments, f"{field}_scale", known.scale)
            setattr(arguments, f"{field}_zero", known.zero_point)
    tensors = [tensor for _, tensor, _ in operands]
    arguments.rows, arguments.columns, strides = rows_and_columns(tensors, step, channel)
    for field, stride in zip(fields, strides, strict=True):
        setattr(arguments, f"{field}_stride", stride)
    arguments.activation, arguments.low, arguments.high = in_numbers(function)
    return arguments


def _step(kind: str, arguments: ElementwiseArguments, roles: dict[str, torch.Tensor], *constants: torch.Tensor) -> Step:
    """Bind operands to the fields first, second and output, in this order."""
    fields = ("first", "second", "output") if len(roles) == 3 else ("first", "output")  # noqa: PLR2004
    places = {role: (arguments, field) for role, field in zip(roles, fields, strict=True)}
    return Step(kind, arguments, roles, constants, places)


def add(
    first: torch.Tensor,
    second: torch.Tensor,
    output: torch.Tensor,
    first_grid: Grid | None = None,
    second_grid: Grid | None = None,
    output_grid: Grid | None = None,
    activation: Activation | Clamp = Activation.NONE,
) -> Step:
    """Build ``output = activation(first + second)``.

    Args:
        first: float32, bfloat16 or uint8 of any shape, in dense rows at one distance; channels-last is right too.
        second: Of the same shape and order of dimensions in memory; no broadcasting.
        output: Likewise.
        first_grid: Meaning of ``first`` if it is uint8; likewise the next two.
        second_grid: Of ``second``.
        output_grid: Of ``output``.
        activation: Of each sum.

    Returns:
        A step with the roles "first", "second" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    operands = (("first", first, first_grid), ("second", second, second_grid), ("output", output, output_grid))
    arguments = _arguments("add", Operation.ADD, operands, activation)
    return _step("add", arguments, {"first": first, "second": second, "output": output})


def gated(
    gate: torch.Tensor,
    up: torch.Tensor,
    output: torch.Tensor,
    activation: Activation | Clamp,
    gate_grid: Grid | None = None,
    up_grid: Grid | None = None,
    output_grid: Grid | None = None,
) -> Step:
    """Build ``output = activation(gate) * up``.

    Args:
        gate: float32, bfloat16 or uint8, as the operands of `add`.
        up: Of the same shape and order of dimensions in memory.
        output: Likewise.
        activation: Of the gate.
        gate_grid: Meaning of ``gate`` if it is uint8; likewise the next two.
        up_grid: Of ``up``.
        output_grid: Of ``output``.

    Returns:
        A step with the roles "gate", "up" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    operands = (("gate", gate, gate_grid), ("up", up, up_grid), ("output", output, output_grid))
    arguments = _arguments("gated", Operation.GATED, operands, activation)
    return _step("gated", arguments, {"gate": gate, "up": up, "output": output})


def requantize(input: torch.Tensor, grid: Grid, output: torch.Tensor, output_grid: Grid) -> Step:
    """Build the change of codes from one grid to another; of equal grids it is a copy.

    Concatenation is this into slices of the channels of one tensor.

    Args:
        input: uint8, as the operands of `add`.
        grid: Meaning of the input.
        output: uint8 of the same shape and order of dimensions in memory.
        output_grid: Meaning of the output.

    Returns:
        A step with the roles "input" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "requantize"
    for name, tensor in (("input", input), ("output", output)):
        operand(tensor, step, name, (torch.uint8,))
    operands = (("input", input, grid), ("output", output, output_grid))
    arguments = _arguments(step, Operation.REQUANTIZE, operands, Activation.NONE)
    if grid == output_grid:
        arguments.first_scale = 0.0
    return _step(step, arguments, {"input": input, "output": output})


def activation(
    input: torch.Tensor,
    output: torch.Tensor,
    activation: Activation | Clamp,
    input_grid: Grid | None = None,
    output_grid: Grid | None = None,
) -> Step:
    """Build an activation that stands alone: ``output = f(input)``.

    Args:
        input: float32, bfloat16 or uint8, as the operands of `add`.
        output: Of the same shape and order of dimensions in memory.
        activation: Of each element.
        input_grid: Meaning of the input if it is uint8.
        output_grid: Meaning of the output if it is uint8.

    Returns:
        A step with the roles "input" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    operands = (("input", input, input_grid), ("output", output, output_grid))
    arguments = _arguments("activation", Operation.ACTIVATE, operands, activation)
    return _step("activation", arguments, {"input": input, "output": output})


def affine(
    input: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    output: torch.Tensor,
    activation: Activation | Clamp = Activation.NONE,
    input_grid: Grid | None = None,
    output_grid: Grid | None = None,
) -> Step:
    """Build ``output = activation(input * scale + shift)`` with one pair of numbers for each channel.

    Args:
        input: float32, bfloat16 or uint8. Of four dimensions: [n, c, h, w] in channels-last memory; otherwise channels
            are the last dimension.
        scale: float32 [c].
        shift: float32 [c].
        output: Of the same shape and order of dimensions in memory.
        activation: Of each element.
        input_grid: Meaning of the input if it is uint8.
        output_grid: Meaning of the output if it is uint8.

    Returns:
        A step with the roles "input" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "affine"
    operand(input, step, "input", FLOATS_AND_CODES)
    check(input.dim() > 0, step, "input", "a scalar", "a tensor with channels")
    channel = 1 if input.dim() == 4 else input.dim() - 1  # noqa: PLR2004
    operands = (("input", input, input_grid), ("output", output, output_grid))
    arguments = _arguments(step, Operation.AFFINE, operands, activation, channel)
    channels = input.shape[channel]
    check(arguments.columns == channels, step, "input", f"of strides {input.stride()}", "dense channels")
    scale, shift = vector(scale, step, "scale", channels), vector(shift, step, "shift", channels)
    arguments.channel_scale, arguments.channel_shift = scale.data_ptr(), shift.data_ptr()
    return _step(step, arguments, {"input": input, "output": output}, scale, shift)


def scale_channels(
    input: torch.Tensor,
    grid: Grid,
    factor: torch.Tensor,
    output: torch.Tensor,
    output_grid: Grid | None = None,
) -> Step:
    """Build ``output = input * factor`` with one factor for each channel of each image: squeeze and excitation.

    Args:
        input: uint8 [n, c, h, w] in channels-last memory, pixels at even distances; so is the output.
        grid: Meaning of the input.
        factor: float32 [n, c, 1, 1], dense.
        output: uint8 or float32 [n, c, h, w].
        output_grid: Meaning of a uint8 output.

    Returns:
        A step with the roles "input", "factor" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "scale_channels"
    arguments = ElementwiseArguments(operation=Operation.SCALE_CHANNELS)
    arguments.first_type = operand(input, step, "input", (torch.uint8,))
    arguments.first_stride = even_pixels(input, step, "input")
    known = grid_of(grid, input.dtype, step, "grid")
    arguments.first_scale, arguments.first_zero = known.scale, known.zero_point
    images, channels, height, width = input.shape
    arguments.second_type = operand(factor, step, "factor", (torch.float32,))
    shaped(factor, step, "factor", (images, channels, 1, 1))
    check(factor.is_contiguous(), step, "factor", f"of strides {factor.stride()}", "dense")
    arguments.second_stride = channels
    arguments.output_type = operand(output, step, "output", (torch.uint8, torch.float32))
    shaped(output, step, "output", input.shape)
    arguments.output_stride = even_pixels(output, step, "output")
    arguments.inverse, arguments.shift = inverse_and_shift(grid_of(output_grid, output.dtype, step, "output_grid"))
    arguments.rows, arguments.columns, arguments.rows_of_image = images * height * width, channels, height * width
    return _step(step, arguments, {"input": input, "factor": factor, "output": output})


def interleave(first: torch.Tensor, second: torch.Tensor, output: torch.Tensor) -> Step:
    """Build the channels of two images in turn: the first of each, the second of each, and so on.

    Args:
        first: uint8 or float32 [n, c, h, w] in channels-last memory, pixels at even distances; so are the others.
        second: Of the same dtype and shape, and of the same grid if these are codes.
        output: Of the same dtype, [n, 2 * c, h, w].

    Returns:
        A step with the roles "first", "second" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "interleave"
    arguments = ElementwiseArguments(operation=Operation.INTERLEAVE)
    arguments.first_type = operand(first, step, "first", (torch.uint8, torch.float32))
    operand(second, step, "second", (first.dtype,))
    operand(output, step, "output", (first.dtype,))
    arguments.first_stride = even_pixels(first, step, "first")
    arguments.second_stride = even_pixels(second, step, "second")
    arguments.output_stride = even_pixels(output, step, "output")
    images, channels, height, width = first.shape
    shaped(second, step, "second", first.shape)
    shaped(output, step, "output", (images, 2 * channels, height, width))
    arguments.rows, arguments.columns = images * height * width, channels
    return _step(step, arguments, {"first": first, "second": second, "output": output})
