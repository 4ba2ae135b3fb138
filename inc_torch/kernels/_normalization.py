"""Layer norm and root mean square norm."""

from __future__ import annotations

import torch

from inc_torch.kernels._arguments import LayerNormArguments, Operation
from inc_torch.kernels._checks import OperandError, grid_of, operand, rows_of, shaped, vector
from inc_torch.kernels._epilogue import inverse_and_shift
from inc_torch.kernels._program import Step
from inc_torch.kernels._types import Grid

__all__ = ["layer_norm"]


def layer_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    epsilon: float,
    output: torch.Tensor | None,
    codes: torch.Tensor | None,
    grid: Grid | None,
    *,
    residual: torch.Tensor | None = None,
    root_mean_square: bool = False,
) -> Step:
    """Build ``(x - mean) / sqrt(variance + epsilon) * weight + bias`` of each row of x = input + residual.

    Args:
        input: float32 [m, n]; rows may be at any distance, as of all matrices here.
        weight: float32 [n].
        bias: float32 [n].
        epsilon: Added to the variance, or to the mean square.
        output: float32 [m, n], or None if only codes are wanted. May be the input or the residual.
        codes: uint8 [m, n], or None if only floats are wanted.
        grid: Meaning of ``codes``.
        residual: float32 [m, n].
        root_mean_square: Whether the mean stays and the values are divided by sqrt(mean(x ** 2) + epsilon).

    Returns:
        A step with the roles "input" and, where given, "weight", "bias", "output", "codes" and "residual".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout, or there is no output.
    """
    step = "layer_norm"
    arguments = LayerNormArguments(operation=Operation.LAYER_NORM, epsilon=epsilon)
    arguments.root_mean_square = int(root_mean_square)
    operand(input, step, "input", (torch.float32,))
    arguments.rows, arguments.columns, arguments.input_stride = rows_of(input, step, "input")
    if output is None and codes is None:
        message = "inc_torch.kernels.layer_norm: expected an output, codes or both, got neither."
        raise OperandError(message)
    for name, tensor, dtype in (
        ("residual", residual, torch.float32),
        ("output", output, torch.float32),
        ("codes", codes, torch.uint8),
    ):
        if tensor is not None:
            operand(tensor, step, name, (dtype,))
            shaped(tensor, step, name, input.shape)
            setattr(arguments, f"{name}_stride", rows_of(tensor, step, name)[2])
    known = grid_of(grid, torch.float32 if codes is None else torch.uint8, step, "grid")
    arguments.inverse, arguments.shift = inverse_and_shift(known)
    constants = [
        None if tensor is None else vector(tensor, step, name, input.shape[1])
        for name, tensor in (("weight", weight), ("bias", bias))
    ]
    roles = dict(zip(("weight", "bias"), constants, strict=True))
    return Step(step, arguments, roles | {"input": input, "residual": residual, "output": output, "codes": codes})
