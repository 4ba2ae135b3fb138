"""Tensors of one shape, seen as few dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inc_torch.kernels._checks import check

__all__ = ["collapse", "rows_and_columns"]


def collapse(tensors: Sequence[torch.Tensor], channel: int | None = None) -> tuple[list[int], list[list[int]]]:
    """Join dimensions that lie together in all tensors.

    Args:
        tensors: Of one shape; the memory order of the last one decides the order of dimensions.
        channel: A dimension that comes last and is not joined with others.

    Returns:
        Sizes, and for each tensor the strides.
    """
    shape, leader = tensors[0].shape, tensors[-1]
    axes = [axis for axis in range(len(shape)) if shape[axis] > 1 and axis != channel]
    order = leader.stride()
    axes.sort(key=lambda axis: -order[axis])
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in tensors]
    for axis in axes:
        steps = [tensor.stride(axis) for tensor in tensors]
        if sizes and all(mine[-1] == step * shape[axis] for mine, step in zip(strides, steps, strict=True)):
            sizes[-1] *= shape[axis]
            for mine, step in zip(strides, steps, strict=True):
                mine[-1] = step
        else:
            sizes.append(shape[axis])
            for mine, step in zip(strides, steps, strict=True):
                mine.append(step)
    if channel is not None:
        sizes.append(shape[channel])
        for mine, tensor in zip(strides, tensors, strict=True):
            mine.append(1 if shape[channel] == 1 else tensor.stride(channel))
    return sizes, strides


def rows_and_columns(
    tensors: Sequence[torch.Tensor], step: str, channel: int | None = None
) -> tuple[int, int, list[int]]:
    """Return rows, columns and the distances of rows, as few rows as possible.

    Args:
        tensors: Of one shape.
        step: Whose operands they are.
        channel: The dimension that the columns are, if they must be one.

    Raises:
        OperandError: They do not lie in rows at one distance, in the same order.
    """
    sizes, strides = collapse(tensors, channel)
    if not sizes or any(mine[-1] != 1 for mine in strides):
        sizes, strides = [*sizes, 1], [[*mine, 1] for mine in strides]
    layout = " and ".join(str(tensor.stride()) for tensor in tensors)
    simple = len(sizes) <= 2  # noqa: PLR2004
    check(simple, step, "the layout", f"of strides {layout}", "dense rows at one distance in all operands")
    if len(sizes) == 1:
        return 1, sizes[0], [sizes[0]] * len(tensors)
    return sizes[0], sizes[1], [mine[0] for mine in strides]
