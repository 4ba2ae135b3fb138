"""Which weights go, by exact counts: of equal scores the first goes first."""

from __future__ import annotations

import torch

from inc_torch.core.report import Finding
from inc_torch.pruners._base import Pattern
from inc_torch.pruners.patterns.n_in_m import NInM

__all__ = ["pattern_finding", "smallest_in_groups", "smallest_in_rows", "whole_groups"]


def smallest_in_rows(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mark exactly the ``count`` smallest of each row.

    Args:
        scores: [rows, columns], no NaN.
        count: 0 to columns.

    Returns:
        Bool like ``scores``, True where pruned.

    Example:
        >>> smallest_in_rows(torch.tensor([[2.0, 1.0, 1.0, 3.0]]), 1)
        tensor([[False,  True, False, False]])
    """
    order = scores.sort(dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, value=True)


def whole_groups(columns: int, pattern: NInM) -> int:
    """How many of the columns lie in whole groups; the others, a tail, stay dense."""
    return columns // pattern.group * pattern.group


def smallest_in_groups(scores: torch.Tensor, pattern: NInM) -> torch.Tensor:
    """Mark the N smallest of each M neighbouring columns, none of a tail that is no whole group.

    Returns:
        Bool like ``scores``, True where pruned.

    Example:
        >>> smallest_in_groups(torch.tensor([[4.0, 1.0, 2.0, 3.0, 0.0]]), NInM(1, 2))
        tensor([[False,  True,  True, False, False]])
    """
    pruned = torch.zeros_like(scores, dtype=torch.bool)
    whole = whole_groups(scores.shape[1], pattern)
    groups = scores[:, :whole].reshape(-1, pattern.group)
    pruned[:, :whole] = smallest_in_rows(groups, pattern.pruned).view(len(scores), whole)
    return pruned


def pattern_finding(name: str, matrix: torch.Tensor, pattern: Pattern, sparsity: float) -> Finding:
    """Say what exact counts prune of a layer.

    Args:
        name: Of the layer.
        matrix: Its weight, [out, in].
        pattern: N:M, or else single weights.
        sparsity: Share of single weights that was asked for.
    """
    if not isinstance(pattern, NInM):
        pruned = matrix.numel() - int(torch.count_nonzero(matrix))
        return Finding(name, pattern="1x1", sparsity=sparsity, units=matrix.numel(), pruned_units=pruned)
    rows, columns = matrix.shape
    whole = whole_groups(columns, pattern)
    units = rows * whole // pattern.group
    note = f"its last {columns - whole} columns, no whole group of {pattern.group}, stay dense"
    return Finding(
        name,
        pattern=f"{pattern.pruned}:{pattern.group}",
        sparsity=pattern.density,
        units=units,
        pruned_units=units,
        note=note if whole < columns else None,
    )
