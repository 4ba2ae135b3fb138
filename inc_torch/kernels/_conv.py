"""Convolutions on channels-last codes."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from inc_torch.kernels._arguments import MatrixArguments, Operation
from inc_torch.kernels._checks import check, even_pixels, operand, pixels, shaped
from inc_torch.kernels._epilogue import Constants, Finish
from inc_torch.kernels._linear import product_step
from inc_torch.kernels._packing import QUAD, PackedWeight, check_packed, pack_conv, pack_taps
from inc_torch.kernels._program import Step
from inc_torch.kernels._types import Activation, Clamp, Grid
from inc_torch.kernels._window import Padding, Pair, Window, fill_image

__all__ = ["conv2d"]


def conv2d(
    input: torch.Tensor,
    weight: PackedWeight,
    input_grid: Grid,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    output: torch.Tensor,
    *,
    activation: Activation | Clamp = Activation.NONE,
    output_grid: Grid | None = None,
    residual: torch.Tensor | None = None,
    residual_grid: Grid | None = None,
    activation_after_residual: bool = True,
) -> Step:
    """Build a convolution with the end of `linear`.

    Args:
        input: uint8 [n, c, h, w] in channels-last memory; may be a slice of the channels of a bigger tensor.
        weight: What `pack_conv` returned for [o, c / groups, kh, kw].
        input_grid: Meaning of the input; the padding is its zero point.
        weight_scale: float32 [o].
        bias: float32 [o].
        stride: One number or (height, width).
        padding: Zeros around: one number, or (height, width), each of which may be (before, after).
        dilation: Distance of taps.
        groups: As given to `pack_conv`.
        output: float32, bfloat16 or uint8 [n, o, h', w'], channels-last, pixels at even distances.
        activation: As in `linear`.
        output_grid: As in `linear`.
        residual: Of the shape and memory order of the output.
        residual_grid: As in `linear`.
        activation_after_residual: As in `linear`.

    Returns:
        A step with the roles "input", "output" and, where given, "residual".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "conv2d"
    weight = check_packed(weight, step)
    check(weight.groups == groups, step, "groups", groups, f"{weight.groups}, as the weight was packed")
    operand(input, step, "input", (torch.uint8,))
    window = Window.of(weight.kernel, stride, padding, dilation, step)
    arguments = MatrixArguments(operation=Operation.MATRIX, groups=groups)
    pixel, _, _ = pixels(input, step, "input")
    channels = input.shape[1]
    depth = weight.columns // (weight.kernel[0] * weight.kernel[1])
    check(channels == depth * groups, step, "input", f"of shape {tuple(input.shape)}", f"{depth * groups} channels")
    if weight.form == "lines" and weight.codes is not None and (window.dilation[1] != 1 or pixel != channels):
        weight = pack_taps(weight.codes, 1)
    if weight.form == "lines" and weight.codes is not None and window.padding_after[1] > window.padding[1]:
        weight, window = _begin_earlier(weight.codes, window)
    shape = fill_image(arguments, input, window, step)
    shape = (shape[0], weight.rows, *shape[2:])
    finish = Finish(output, activation, output_grid, residual, residual_grid, activation_after_residual)
    finish.fill(arguments.epilogue, step)
    shaped(output, step, "output", shape)
    arguments.epilogue.output_stride = even_pixels(output, step, "output")
    if residual is not None:
        shaped(residual, step, "residual", shape)
        arguments.epilogue.residual_stride = even_pixels(residual, step, "residual")
    constants = Constants(weight, weight_scale, bias, input_grid, None, step)
    constants.fold(finish, arguments.epilogue, weight.columns)
    others = _choose_form(arguments, input, weight, window, input_grid)
    operands = {"input": input, "output": output, "residual": residual}
    return product_step(step, arguments, weight, constants, operands, others)


def _begin_earlier(codes: torch.Tensor, window: Window) -> tuple[PackedWeight, Window]:
    """The same convolution with as wide a border left as right: taps of zero before the others read what is too much.

    Lines are copied with the same border on either side.
    """
    after = window.padding_after[1]
    longer = pack_conv(F.pad(codes, (after - window.padding[1], 0)), 1)
    return longer, replace(window, kernel=longer.kernel, padding=(window.padding[0], after))


def _choose_form(
    arguments: MatrixArguments, input: torch.Tensor, weight: PackedWeight, window: Window, grid: Grid
) -> tuple[torch.Tensor, ...]:
    """Write how taps are found; return the memory that this takes."""
    images, channels, height, width = input.shape
    taps = weight.kernel[0] * weight.kernel[1]
    border = torch.full((weight.kernel[1] * channels + 64,), grid.zero_point, dtype=torch.uint8)
    arguments.padding = border.data_ptr()
    arguments.rows = images * arguments.output_height * arguments.output_width
    if weight.form == "depthwise":
        arguments.operation = Operation.DEPTHWISE
        arguments.groups, arguments.taps, arguments.depth, arguments.spatial = 1, taps, 1, 1
        return (border,)
    if weight.form == "lines":
        arguments.taps, arguments.depth, arguments.spatial = weight.kernel[0], weight.kernel[1] * channels, 2
        room = images * (height + 2 * window.padding[0]) * (width + 2 * window.padding[1]) * channels
        scratch = torch.zeros(room + QUAD, dtype=torch.uint8)
        arguments.scratch = scratch.data_ptr()
        return border, scratch
    arguments.taps, arguments.depth, arguments.spatial = taps, channels // weight.groups, 1
    even = (
        arguments.line_stride == width * arguments.pixel_stride
        and arguments.image_stride == height * arguments.line_stride
    )
    if even and window.is_point:
        arguments.spatial = 0
    return (border,)
