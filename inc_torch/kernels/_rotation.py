"""Rotary position embedding."""

from __future__ import annotations

import torch

from inc_torch.kernels._arguments import Operation, RotateArguments
from inc_torch.kernels._checks import check, dense_last, operand, shaped
from inc_torch.kernels._program import Step

__all__ = ["rotate"]


def rotate(input: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, output: torch.Tensor) -> Step:
    """Build ``output = input * cosine + cat(-second, first) * sine``, where first and second are halves of the input.

    This is the rotary embedding of Llama, whose pairs lie d / 2 apart (Su et al., 2021, arXiv:2104.09864).

    Args:
        input: float32 [b, h, s, d] of even d, any strides with a dense last dimension; so are the others.
        cosine: float32 [b, 1, s, d] or [1, 1, s, d].
        sine: Likewise.
        output: float32 [b, h, s, d]; may be the input.

    Returns:
        A step with the roles "input", "cosine", "sine" and "output".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "rotate"
    arguments = RotateArguments(operation=Operation.ROTATE)
    roles = {"input": input, "cosine": cosine, "sine": sine, "output": output}
    for name, tensor in roles.items():
        operand(tensor, step, name, (torch.float32,))
        check(tensor.dim() == 4, step, name, f"of shape {tuple(tensor.shape)}", "of four dimensions")  # noqa: PLR2004
        dense_last(tensor, step, name)
    batch, heads, positions, size = input.shape
    check(size % 2 == 0, step, "input", f"of shape {tuple(input.shape)}", "an even last dimension")
    shaped(output, step, "output", input.shape)
    for name in ("cosine", "sine"):
        shaped(roles[name], step, name, (1 if roles[name].shape[0] == 1 else batch, 1, positions, size))
    for name, tensor in roles.items():
        strides = zip(tensor.shape[:3], tensor.stride()[:3], strict=True)
        getattr(arguments, f"{name}_strides")[:] = [0 if length == 1 else stride for length, stride in strides]
    arguments.batch, arguments.heads, arguments.positions, arguments.half = batch, heads, positions, size // 2
    return Step(step, arguments, roles)
