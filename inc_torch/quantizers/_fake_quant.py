"""Rounding that training sees through: values are those of int8, gradients those of the float model."""

from __future__ import annotations

from typing import final

import torch
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from inc_torch.quantizers._codes import InputGrid, snap, snap_weight

__all__ = ["fake_quantize_input", "fake_quantize_input_traced", "fake_quantize_weight"]


@final
class _SnapInput(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, values: torch.Tensor, grid: InputGrid) -> torch.Tensor:
        ctx.save_for_backward(values)
        ctx.limits = grid.limits  # type: ignore[attr-defined]  # torch's way to hand on plain values
        return snap(values, grid)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (values,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch's stubs lack it
        # The gradient of a clipped identity: one pass, no mask in memory.
        low, high = ctx.limits  # type: ignore[attr-defined]  # see forward
        return torch.ops.aten.hardtanh_backward(gradients[0], values, low, high), None


@final
class _SnapWeight(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: torch.Tensor, axis: int | None, bits: int) -> torch.Tensor:  # noqa: ARG004  torch's signature
        return snap_weight(weight, axis, bits)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ARG004  torch's signature
        return gradients[0], None, None


def fake_quantize_input(values: torch.Tensor, grid: InputGrid) -> torch.Tensor:
    """Round activations to the grid; the gradient passes where nothing was clipped and is 0 elsewhere.

    Example:
        >>> x = torch.tensor([0.3, -9.0], requires_grad=True)
        >>> y = fake_quantize_input(x, InputGrid(scale=0.5, zero_point=1, top=255))
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.5, -0.5], [1.0, 0.0])

    Reference: Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, arXiv 1712.05877; gradient of Bengio et al., arXiv 1308.3432.
    """
    result: torch.Tensor = _SnapInput.apply(values, grid)  # type: ignore[no-untyped-call]  # torch.autograd is untyped
    return result


def fake_quantize_input_traced(values: torch.Tensor, grid: torch.Tensor, top: int) -> torch.Tensor:
    """What `fake_quantize_input` computes, from a grid in a tensor, in operations that torch.compile fuses.

    Args:
        values: Any floating dtype.
        grid: Scale and zero point.
        top: Greatest code.

    Example:
        >>> fake_quantize_input_traced(torch.tensor([0.3, -9.0]), torch.tensor([0.5, 1.0]), 255)
        tensor([ 0.5000, -0.5000])
    """
    scale, zero_point = grid[0], grid[1]
    inside = torch.clamp(values.float(), (-zero_point - 0.5) * scale, (top - zero_point + 0.5) * scale)
    snapped = (torch.clamp(torch.round(inside / scale + zero_point), 0, top) - zero_point) * scale
    return (inside + (snapped - inside).detach()).to(values.dtype)


def fake_quantize_weight(weight: torch.Tensor, axis: int | None, bits: int = 8) -> torch.Tensor:
    """Round weights to int8 of their present range; the gradient passes unchanged, as nothing is clipped.

    Args:
        weight: Any floating dtype.
        axis: The axis of output channels, or None for one scale for the whole tensor.
        bits: Width of the codes.
    """
    result: torch.Tensor = _SnapWeight.apply(weight, axis, bits)  # type: ignore[no-untyped-call]  # torch.autograd is untyped
    return result
