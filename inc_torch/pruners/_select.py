"""Exact selection of the smallest scores, without a full sort."""

from __future__ import annotations

import math

import numpy as np
import torch

__all__ = ["DIGITS", "count_of", "keep_largest", "smallest"]

DIGITS = ((20, 11), (10, 10), (0, 10))
"""Shift and width of the digits of a score, the first one first: 31 bits, since the sign is always plus."""

_ROUNDING = 1e-6
"""Forgives products such as 100 * 0.57 = 56.99999999999999."""


def count_of(ratio: float, units: int) -> int:
    """``floor(ratio * units)``, with binary rounding of the product forgiven.

    Example:
        >>> count_of(0.57, 100), count_of(0.5, 3)
        (57, 1)
    """
    return min(units, math.floor(ratio * units + _ROUNDING))


def smallest(values: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count``-th smallest value, 0-d.

    Args:
        values: Flat, finite.
        count: 1 to ``values.numel()``.
    """
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # numpy selects with vector instructions: about a thirtieth of the time of kthvalue.
        return torch.from_numpy(np.partition(values.numpy(), count - 1)[count - 1 : count])[0]
    return torch.kthvalue(values, count).values


def keep_largest(values: torch.Tensor, pruned: int) -> torch.Tensor:
    """Flat bool in which exactly the ``pruned`` smallest are False; of equal values the first go first.

    Example:
        >>> keep_largest(torch.tensor([2.0, 1.0, 2.0, 3.0]), 2).tolist()
        [False, False, True, True]
    """
    if pruned <= 0:
        return torch.ones_like(values, dtype=torch.bool)
    threshold = smallest(values, pruned)
    keep = values > threshold
    missing = values.numel() - pruned - int(torch.count_nonzero(keep))
    if missing:
        ties = (values == threshold).nonzero().squeeze(-1)
        keep[ties[-missing:]] = True
    return keep
