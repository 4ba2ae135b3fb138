"""Scaled dot product attention."""

from __future__ import annotations

import math

import torch

from inc_torch.kernels._arguments import AttentionArguments, Operation
from inc_torch.kernels._checks import check, dense_last, grid_of, operand, shaped
from inc_torch.kernels._epilogue import FLOATS_AND_CODES, inverse_and_shift
from inc_torch.kernels._program import Step
from inc_torch.kernels._types import Grid

__all__ = ["attention"]

_FLOATS = (torch.float32, torch.bfloat16)
_BOOL = 3


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    causal: bool,
    *,
    output_grid: Grid | None = None,
) -> Step:
    """Build ``softmax(query key' * scale + mask) value`` of each head.

    Products are in bfloat16 with float32 sums; of one or two queries all is float32. A query whose keys are all masked
    gives 0.

    Args:
        query: float32 or bfloat16 [b, h, s, d], any strides with a dense last dimension; so are ``key`` and ``value``.
        key: [b, hk, t, d]; hk divides h, and h / hk neighbouring heads share a key head.
        value: [b, hk, t, dv].
        output: float32, bfloat16 or uint8 [b, s, h, dv], any strides with a dense last dimension.
        scale: Of the scores.
        mask: float32, added to the scores, or bool, True where a key takes part; broadcasts to [b, h, s, t].
        causal: Whether query i sees only the keys 0 to i, as in `torch.nn.functional.scaled_dot_product_attention`.
        output_grid: Meaning of a uint8 output.

    Returns:
        A step with the roles "query", "key", "value", "output" and, where given, "mask".

    Raises:
        OperandError: An operand has the wrong dtype, shape, device or layout.
    """
    step = "attention"
    arguments = AttentionArguments(operation=Operation.ATTENTION, scale=scale, causal=int(causal))
    check(math.isfinite(scale), step, "scale", scale, "a finite number")
    _fill_operand(arguments, query, "query", _FLOATS)
    _fill_operand(arguments, key, "key", _FLOATS)
    _fill_operand(arguments, value, "value", _FLOATS)
    _fill_operand(arguments, output.transpose(1, 2), "output", FLOATS_AND_CODES)
    batch, heads, queries, size = query.shape
    key_heads, keys = key.shape[1:3]
    shaped(key, step, "key", (batch, key_heads, keys, size))
    shaped(value, step, "value", (batch, key_heads, keys, value.shape[-1]))
    shaped(output, step, "output", (batch, queries, heads, value.shape[-1]))
    check(heads % key_heads == 0, step, "key", f"of {key_heads} heads", f"a divisor of the {heads} heads of the query")
    arguments.batch, arguments.heads, arguments.queries, arguments.size = query.shape
    arguments.key_heads, arguments.keys, arguments.value_size = key_heads, keys, value.shape[-1]
    arguments.inverse, arguments.shift = inverse_and_shift(grid_of(output_grid, output.dtype, step, "output_grid"))
    if mask is not None:
        _fill_mask(arguments, mask, (batch, heads, queries, keys))
    roles = {"query": query, "key": key, "value": value, "output": output, "mask": mask}
    return Step(step, arguments, roles)


def _fill_operand(
    arguments: AttentionArguments, tensor: torch.Tensor, name: str, dtypes: tuple[torch.dtype, ...]
) -> None:
    number = operand(tensor, "attention", name, dtypes)
    four = tensor.dim() == 4  # noqa: PLR2004
    check(four, "attention", name, f"of shape {tuple(tensor.shape)}", "of four dimensions")
    dense_last(tensor, "attention", name)
    setattr(arguments, f"{name}_type", number)
    getattr(arguments, f"{name}_strides")[:] = tensor.stride()[:3]


def _fill_mask(arguments: AttentionArguments, mask: torch.Tensor, shape: tuple[int, int, int, int]) -> None:
    operand(mask, "attention", "mask", (torch.float32, torch.bool))
    fits = mask.dim() == len(shape) and all(mine in (1, full) for mine, full in zip(mask.shape, shape, strict=True))
    check(fits, "attention", "mask", f"of shape {tuple(mask.shape)}", f"one that broadcasts to {shape}")
    dense_last(mask, "attention", "mask")
    arguments.mask_type = _BOOL if mask.dtype == torch.bool else 1
    arguments.mask_strides[:] = [
        0 if mine == 1 else stride for mine, stride in zip(mask.shape, mask.stride(), strict=True)
    ]
    if mask.shape[3] == 1 and shape[3] == 1:
        arguments.mask_strides[3] = 1
