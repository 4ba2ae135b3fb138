"""The range of least squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from inc_torch.quantizers._density import Density
from inc_torch.quantizers._observers import OBSERVERS, Levels, fit_grid
from inc_torch.quantizers._range_search import search_range
from inc_torch.quantizers._statistics import TensorStatistics

_SHARES = torch.logspace(0, -3, 61, dtype=torch.float64)
"""Each 11 % below the one before."""
_FACTORS = torch.logspace(0.05, -0.05, 21, dtype=torch.float64)
"""From one share to the next, by 1.2 %."""


@final
@OBSERVERS.register("mse", summary="least mean squared error of rounding and clipping")
@dataclass(frozen=True, slots=True)
class Mse:
    """The range whose grid, as `fit_grid` makes it, has the least mean of ``(x - quantized x) ** 2``.

    Rounding and clipping are both counted, exactly for the histogram. The ends are searched by `search_range` from
    the extremes down to a thousandth of them; of an asymmetric grid each end by itself. The same statistics give the
    same range. Nothing to set.

    Example:
        >>> seen = TensorStatistics.of(torch.cat([torch.linspace(-1, 1, 99_999), torch.tensor([30.0])]))
        >>> low, high = Mse().range(seen, Levels.of(2, signed=True))
        >>> -1 <= low.item() < 0, 0 < high.item() < 1
        (True, True)
    """

    def range(self, seen: TensorStatistics, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
        density = Density.of(seen)

        def loss(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
            scale, zero_point = fit_grid(low, high, levels)
            step = scale.double()
            return density.squared_error((levels.low - zero_point) * step, step, levels.high - levels.low + 1)

        return search_range(seen, levels, loss, shares=_SHARES, factors=_FACTORS)
