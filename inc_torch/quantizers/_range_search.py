"""The search for the range of least loss."""

from __future__ import annotations

from collections.abc import Callable

import torch

from inc_torch.quantizers._observers import Levels
from inc_torch.quantizers._statistics import TensorStatistics

__all__ = ["Loss", "search_range"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The losses, [channels, candidates], of ranges given by their low and high ends, float64 [channels, candidates]."""

Ends = tuple[torch.Tensor, torch.Tensor]

_PIECE = 2**16
"""Levels of all candidates of all channels that are looked at together; the cache of a core holds them."""


def search_range(
    seen: TensorStatistics, levels: Levels, loss: Loss, *, shares: torch.Tensor, factors: torch.Tensor
) -> Ends:
    """Return the ends of least loss that were found, float64 [channels] each; of equal losses the widest range.

    Symmetric: the ends are ``-t`` and ``t``, and ``t`` goes through all shares of the greatest magnitude, then through
    all factors of the best. Asymmetric: both ends go through all shares together; then the one and the other by itself,
    first through the shares, then through the factors of its best. A range never reaches beyond what was seen.

    Args:
        seen: Gives the extremes.
        levels: What the range will be divided into.
        loss: What is to be least; its cost grows with the number of levels.
        shares: Of the extremes, falling from 1, float64.
        factors: Around 1, falling, for the fine search; may be empty.
    """
    low, high = seen.low, seen.high
    at_once = max(1, _PIECE // (len(low) * (levels.high - levels.low + 1)))

    def in_pieces(lows: torch.Tensor, highs: torch.Tensor) -> torch.Tensor:
        pieces = zip(torch.split(lows, at_once, dim=1), torch.split(highs, at_once, dim=1), strict=True)
        return torch.cat([loss(*piece) for piece in pieces], dim=1)

    if levels.symmetric:
        magnitude = torch.maximum(-low, high)
        low, high = -magnitude, magnitude
    extremes = best = (low, high)
    best = _together(extremes, shares, extremes, in_pieces, best)
    if levels.symmetric or not (low.any() and high.any()):
        best = _together(best, factors, extremes, in_pieces, best)
    else:
        best = _each(extremes, shares, extremes, in_pieces, best)
        best = _each(best, factors, extremes, in_pieces, best)
    return torch.maximum(best[0], seen.low), torch.minimum(best[1], seen.high)


def _together(around: Ends, factors: torch.Tensor, extremes: Ends, loss: Loss, best: Ends) -> Ends:
    low, high = (_candidates(end, factors, extreme) for end, extreme in zip(around, extremes, strict=True))
    return _best_of(low, high, loss, best)


def _each(around: Ends, factors: torch.Tensor, extremes: Ends, loss: Loss, best: Ends) -> Ends:
    high = _candidates(around[1], factors, extremes[1])
    best = _best_of(best[0].unsqueeze(1).expand_as(high), high, loss, best)
    low = _candidates(around[0], factors, extremes[0])
    return _best_of(low, best[1].unsqueeze(1).expand_as(low), loss, best)


def _candidates(end: torch.Tensor, factors: torch.Tensor, extreme: torch.Tensor) -> torch.Tensor:
    candidates = end.unsqueeze(1) * factors
    return torch.where(candidates.abs() < extreme.abs().unsqueeze(1), candidates, extreme.unsqueeze(1))


def _best_of(low: torch.Tensor, high: torch.Tensor, loss: Loss, best: Ends) -> Ends:
    """The candidate of least loss, or the best so far if none is better."""
    low, high = (torch.cat([end.unsqueeze(1), more], 1) for end, more in zip(best, (low, high), strict=True))
    winner = loss(low, high).argmin(1, keepdim=True)
    return low.gather(1, winner).squeeze(1), high.gather(1, winner).squeeze(1)
