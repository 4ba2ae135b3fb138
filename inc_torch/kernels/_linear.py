"""Linear layers."""

from __future__ import annotations

import torch

from inc_torch.kernels._arguments import MatrixArguments, Operation
from inc_torch.kernels._checks import check, operand, rows_of, shaped
from inc_torch.kernels._epilogue import Constants, Finish
from inc_torch.kernels._packing import PackedWeight, check_packed
from inc_torch.kernels._program import Step
from inc_torch.kernels._types import Activation, Clamp, Grid

__all__ = ["linear"]


def linear(
    input: torch.Tensor,
    weight: PackedWeight,
    input_grid: Grid | None,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    output: torch.Tensor,
    *,
    activation: Activation | Clamp = Activation.NONE,
    output_grid: Grid | None = None,
    residual: torch.Tensor | None = None,
    residual_grid: Grid | None = None,
    activation_after_residual: bool = True,
    dynamic: torch.Tensor | None = None,
) -> Step:
    """Build ``output = activation(input weight' + bias + residual)`` on codes.

    The sum of products is exact, in int32, the zero point included. It is then multiplied by
    ``input_scale * weight_scale[n]``; all that follows is float32.

    Args:
        input: uint8 [m, k]; rows may be at any distance.
        weight: Of [n, k] codes.
        input_grid: Meaning of the input; None with ``dynamic``.
        weight_scale: float32 [n].
        bias: float32 [n].
        output: float32, bfloat16 or uint8 [m, n]; rows may be at any distance.
        activation: Of each element.
        output_grid: Meaning of a uint8 output.
        residual: float32, bfloat16 or uint8 [m, n].
        residual_grid: Meaning of a uint8 residual.
        activation_after_residual: Whether the activation is applied to the sum with the residual, or before it.
        dynamic: float32 [2]: scale and zero point of the input, read when the step runs; see `dynamic_range`.

    Returns:
        A step with the roles "input", "output" and, where given, "residual" and "dynamic".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "linear"
    weight = check_packed(weight, step)
    check(
        weight.kernel == (1, 1) and weight.groups == 1, step, "weight", "of a convolution", "what pack_linear returns"
    )
    operand(input, step, "input", (torch.uint8,))
    arguments = MatrixArguments(operation=Operation.MATRIX, groups=1, taps=1, spatial=0)
    arguments.rows, arguments.depth, arguments.pixel_stride = rows_of(input, step, "input")
    check(arguments.depth == weight.columns, step, "input", f"of shape {tuple(input.shape)}", f"[m, {weight.columns}]")
    finish = Finish(output, activation, output_grid, residual, residual_grid, activation_after_residual)
    finish.fill(arguments.epilogue, step)
    shape = (input.shape[0], weight.rows)
    shaped(output, step, "output", shape)
    arguments.epilogue.output_stride = rows_of(output, step, "output")[2]
    if residual is not None:
        shaped(residual, step, "residual", shape)
        arguments.epilogue.residual_stride = rows_of(residual, step, "residual")[2]
    constants = Constants(weight, weight_scale, bias, input_grid, dynamic, step)
    constants.fold(finish, arguments.epilogue, weight.columns)
    return product_step(step, arguments, weight, constants, {"input": input, "output": output, "residual": residual})


def product_step(
    kind: str,
    arguments: MatrixArguments,
    weight: PackedWeight,
    constants: Constants,
    operands: dict[str, torch.Tensor | None],
    others: tuple[torch.Tensor, ...] = (),
) -> Step:
    """Bind operands and constants of a linear layer or convolution."""
    constants.fill(arguments.epilogue)
    arguments.columns, arguments.padded_columns = weight.rows // arguments.groups, weight.padded_rows
    arguments.weight = weight.data.data_ptr()
    arguments.weight_scale = constants.weight_scale.data_ptr()
    arguments.column_sums = constants.column_sums.data_ptr()
    arguments.dynamic_scale = constants.scale.data_ptr()
    arguments.dynamic_offset = constants.offset.data_ptr()
    places = {name: (arguments.epilogue, name) for name in ("output", "residual")}
    roles = operands | {"dynamic": constants.dynamic}
    return Step(kind, arguments, roles, (weight.data, *constants.tensors, *others), places)
