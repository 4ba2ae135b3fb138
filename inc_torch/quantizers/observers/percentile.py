"""Percentiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from inc_torch.core.errors import ConfigError
from inc_torch.quantizers._density import Density
from inc_torch.quantizers._observers import OBSERVERS, Levels
from inc_torch.quantizers._statistics import BINS, TensorStatistics


@final
@OBSERVERS.register("percentile", summary="cuts the same share of values off both tails")
@dataclass(frozen=True, slots=True)
class Percentile:
    """From the ``100 - percentile`` % point of the values to the ``percentile`` % point.

    Inside a bin the point is interpolated, as if its values were spread evenly. 0 is always in the range.

    INC 2.6.1 accepts the name and has no such observer for PyTorch.

    Attributes:
        percentile: Above 50, at most 100; 100 gives the extremes themselves.

    Example:
        >>> seen = TensorStatistics.of(torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([1000.0])]))
        >>> low, high = Percentile(99.0).range(seen, Levels.of(8, signed=True))
        >>> -1 < low.item() < -0.9, 0.9 < high.item() < 1.1
        (True, True)
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:  # noqa: PLR2004  what the message says
            message = f"{__name__}: percentile is {self.percentile}; it must be above 50 and at most 100."
            raise ConfigError(message)

    def range(self, seen: TensorStatistics, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
        density = Density.of(seen)
        cut = 1 - self.percentile / 100
        total = density.masses[:, -1:]
        masses = torch.cat([total * cut, total * (1 - cut)], dim=1)
        low, high = _points(density, masses).unbind(1)
        return low.clamp(max=0.0), high.clamp(min=0.0)


def _points(density: Density, masses: torch.Tensor) -> torch.Tensor:
    """Points with so much mass below them, [channels, masses]."""
    bins = torch.searchsorted(density.masses, masses).sub_(1).clamp_(0, BINS - 1)
    below, above = density.masses.gather(1, bins), density.masses.gather(1, bins + 1)
    left, right = density.borders.gather(1, bins), density.borders.gather(1, bins + 1)
    return left + (right - left) * ((masses - below) / (above - below).clamp(min=1)).clamp(0, 1)
