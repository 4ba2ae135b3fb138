"""Weights that lie in memory as the units of a pattern do, so that compiled kernels can walk them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from inc_torch import kernels

__all__ = ["DenseBlocks", "can_run", "is_plain"]


@final
@dataclass(frozen=True, slots=True)
class DenseBlocks:
    """A tensor without gaps, seen as a matrix whose units are blocks of rows by one column.

    Attributes:
        values: [units * rows, columns], in any shape.
        columns: Columns of the matrix.
        rows: Rows of a block.
    """

    values: torch.Tensor
    columns: int
    rows: int


def can_run(*tensors: torch.Tensor) -> bool:
    """Whether kernels can work on these."""
    return all(tensor.dtype == torch.float32 and is_plain(tensor) for tensor in tensors) and kernels.available()


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values, on the CPU and without gaps."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel() > 0
