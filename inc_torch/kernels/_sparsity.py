"""Scores of pruning units, and zeros where masks prune: one pass over memory each."""

from __future__ import annotations

from typing import Literal

import torch

from inc_torch.kernels._arguments import (
    BlockScoresArguments,
    Operation,
    PickInGroupsArguments,
    ZeroBlocksArguments,
)
from inc_torch.kernels._checks import check, dense
from inc_torch.kernels._program import Step

__all__ = ["block_scores", "pick_in_groups", "zero_blocks"]

Reduction = Literal["mean", "sum", "max", "net"]
_NUMBERS = {"mean": 0, "sum": 0, "max": 1, "net": 2}
_FLOAT, _BOOL, _FLAG = (torch.float32,), (torch.bool,), (torch.int64,)


def block_scores(
    first: torch.Tensor,
    second: torch.Tensor | None,
    output: torch.Tensor | None,
    finite: torch.Tensor,
    reduction: Reduction,
    *,
    columns: int,
    block: int = 1,
    before: torch.Tensor | None = None,
    decay: float = 0.0,
) -> Step:
    """Build ``output = decay * before + reduction over |first * second|`` of blocks of rows by one column.

    Args:
        first: float32, dense, seen as [units * block, columns].
        second: Of the same shape; None stands for ones.
        output: float32, dense, seen as [units, columns]; None finds out ``finite`` alone.
        finite: int64 [1], becomes 1 if all fresh scores are finite, else 0. What the past adds does not count.
        reduction: ``mean``, ``sum`` or ``max`` of the magnitudes, or ``net``: the magnitude of the sum. A sum is taken
            in float32, row after row, and over many rows in parts of 16.
        columns: Columns of the matrix.
        block: Rows of a block.
        before: Scores of the past, as ``output``, and may be it.
        decay: What they are multiplied with.

    Returns:
        A step with the roles "first", "second", "before", "output" and "finite", as far as they are given.

    Raises:
        OperandError: An operand has the wrong dtype, size, device or layout.
    """
    step = "block_scores"
    dense(first, step, "first", _FLOAT)
    size = first.numel()
    check_matrix(step, size, columns, block)
    if second is not None:
        dense(second, step, "second", _FLOAT, size)
    if output is not None:
        dense(output, step, "output", _FLOAT, size // block)
    if before is not None:
        dense(before, step, "before", _FLOAT, size // block)
    dense(finite, step, "finite", _FLAG, 1)
    arguments = BlockScoresArguments(
        operation=Operation.BLOCK_SCORES,
        rows=size // (columns * block),
        columns=columns,
        block=block,
        reduction=_NUMBERS[reduction],
        divisor=block if reduction == "mean" else 1,
        decay=decay,
    )
    roles = {"first": first, "second": second, "before": before, "output": output, "finite": finite}
    return Step(step, arguments, roles)


def zero_blocks(values: torch.Tensor, keep: torch.Tensor, *, columns: int, block: int = 1) -> Step:
    """Build ``values = 0`` in place, in the blocks of rows by one column that are not kept.

    Zeros are written, not multiplied with: infinities go too.

    Args:
        values: float32, dense, seen as [units * block, columns].
        keep: bool, dense, seen as [units, columns].
        columns: Columns of the matrix.
        block: Rows of a block.

    Returns:
        A step with the roles "values" and "keep".

    Raises:
        OperandError: An operand has the wrong dtype, size, device or layout.
    """
    step = "zero_blocks"
    dense(values, step, "values", _FLOAT)
    size = values.numel()
    check_matrix(step, size, columns, block)
    dense(keep, step, "keep", _BOOL, size // block)
    arguments = ZeroBlocksArguments(
        operation=Operation.ZERO_BLOCKS, rows=size // (columns * block), columns=columns, block=block
    )
    return Step(step, arguments, {"values": values, "keep": keep})


def pick_in_groups(
    scores: torch.Tensor,
    pruned: int,
    *,
    group_scores: torch.Tensor | None = None,
    reduction: Literal["mean", "sum", "max"] = "mean",
    keep: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> Step:
    """Build what N:M sparsity asks of scores: the ``pruned`` smallest of each group, of equal ones the first.

    Args:
        scores: float32 [groups, size], dense, at least 0.
        pruned: How many of each group.
        group_scores: float32 [groups] or None; becomes the sum or the greatest of those, or, ``mean``, the sum
            divided by ``size``.
        reduction: Which of these.
        keep: bool [groups], with ``mask``: groups of which nothing is pruned.
        mask: bool [groups, size] or None; becomes False where scores are pruned.

    Returns:
        A step with the roles "scores", "keep", "group_scores" and "mask", as far as they are given.

    Raises:
        OperandError: An operand has the wrong dtype, size, device or layout.
    """
    step = "pick_in_groups"
    dense(scores, step, "scores", _FLOAT)
    check(scores.dim() == 2, step, "scores", f"of shape {tuple(scores.shape)}", "[groups, size]")  # noqa: PLR2004
    groups, size = scores.shape
    check((keep is None) == (mask is None), step, "keep", "given without mask, or mask without it", "both or none")
    if group_scores is not None:
        dense(group_scores, step, "group_scores", _FLOAT, groups)
    if keep is not None and mask is not None:
        dense(keep, step, "keep", _BOOL, groups)
        dense(mask, step, "mask", _BOOL, groups * size)
    arguments = PickInGroupsArguments(
        operation=Operation.PICK_IN_GROUPS,
        groups=groups,
        size=size,
        pruned=pruned,
        reduction=_NUMBERS[reduction],
        divides=reduction == "mean",
    )
    return Step(step, arguments, {"scores": scores, "keep": keep, "group_scores": group_scores, "mask": mask})


def check_matrix(step: str, size: int, columns: int, block: int) -> None:
    """Check that ``size`` numbers are blocks of rows of so many columns."""
    divides = columns > 0 and block > 0 and size % (columns * block) == 0
    check(divides, step, "the matrix", f"of {size} numbers", f"blocks of {block} rows of {columns} columns")
