"""INC's default: a range narrowed step by step as long as the squared error falls."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import final

import torch

from inc_torch.quantizers._density import Density
from inc_torch.quantizers._observers import OBSERVERS, Levels
from inc_torch.quantizers._statistics import TensorStatistics

_CELLS = 2048
"""Equal parts of the range; its ends move by whole cells."""
_STEPS = 100_000
"""Each step of the search gives up this part of the values, at one end."""
_TARGETS = 256
"""Levels of which the error is computed, whatever the levels asked for."""
_AT_ONCE = 32
"""Ranges whose errors are computed together; at most so many are computed in vain."""


@final
@OBSERVERS.register("kl", summary="INC's default: narrowed from both ends as long as the squared error falls")
@dataclass(frozen=True, slots=True)
class Kl:
    """The range that INC calls ``kl``; no divergence is computed, see ``kl_divergence`` for a search that does.

    The range is cut into 2048 cells. Each step gives up 1e-5 of the values at one end, the one where this passes more
    cells. Whenever an end has moved, the sum of the squared errors of 256 levels laid evenly over the range is
    computed, with what lies beyond clipped to the outermost levels. The search ends before the first move that makes it
    greater. So it may stop at a local minimum, and often leaves outliers in the range; ``mse`` looks further.

    Which ranges come in which order does not depend on their errors. So they are listed first, with steps that move
    nothing jumped over, and the errors of many are computed at once.

    Reference: INC 2.6.1 ``kl``, which is torch's ``HistogramObserver``.

    Example:
        >>> seen = TensorStatistics.of(torch.linspace(-1, 1, 2049))
        >>> low, high = Kl().range(seen, Levels.of(8, signed=False))
        >>> low.item(), high.item()
        (-1.0, 0.9990234375)
    """

    def range(self, seen: TensorStatistics, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
        density = Density.of(seen).in_equal_bins(_CELLS)
        kept = [_search(density.channel(number)) for number in range(len(density.borders))]
        low, high = torch.stack(kept).unbind(1)
        return low.clamp(max=0.0), high.clamp(min=0.0)


def _search(density: Density) -> torch.Tensor:
    """Return the ends of the range of one channel, float64 [2]."""
    borders, masses = density.borders[0], density.masses[0]
    best, least_error = torch.stack([borders[0], borders[-1]]), torch.inf
    ranges = _narrowing((masses[1:] / masses[-1]).tolist())
    while cells := list(islice(ranges, _AT_ONCE)):
        ends = borders[torch.tensor(cells)]
        step = (ends[:, 1] - ends[:, 0]) / _TARGETS
        errors = density.squared_error((ends[:, 0] + step / 2).unsqueeze(0), step.unsqueeze(0), _TARGETS)[0]
        for error, candidate in zip(errors.tolist(), ends, strict=True):
            if error > least_error:
                return best
            best, least_error = candidate, error
    return best


def _narrowing(below: list[float]) -> Iterator[tuple[int, int]]:
    """Yield the ever narrower ranges of the search, each as its first border and its last.

    Args:
        below: The share of values up to the end of each cell.
    """
    first, last, lower_steps, upper_steps = 0, len(below) - 1, 0, 0
    while first < last and lower_steps + upper_steps < _STEPS:
        next_first = bisect_left(below, (lower_steps + 1) / _STEPS, first, last)
        next_last = max(first, bisect_right(below, 1 - (upper_steps + 1) / _STEPS, first, last + 1) - 1)
        if next_first - first > last - next_last:
            first = next_first
            lower_steps += 1
        elif next_last < last:
            last = next_last
            upper_steps += 1
        else:
            upper_steps = max(upper_steps + 1, int((1 - below[last]) * _STEPS))
            continue
        yield first, last + 1
