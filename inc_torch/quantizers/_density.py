"""A histogram as a density: what lies below any point, and what rounding to any grid costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from inc_torch.quantizers._statistics import BINS, TensorStatistics

__all__ = ["Density", "running_sums"]


@final
@dataclass(frozen=True, slots=True)
class Density:
    """Values spread evenly over their bins; the outermost bins end at the least and the greatest value.

    Attributes:
        start: Where the first bin would begin if it were not cut, float64 [channels, 1].
        widths: Of the bins that are not cut, float64 [channels, 1].
        borders: Of the bins, float64 [channels, bins + 1].
        masses: How many values lie below each border, float64 [channels, bins + 1].
        moments: The sum of the values below each border, float64 [channels, bins + 1].
        squares: The sum of the squares of all values, float64 [channels, 1].
    """

    start: torch.Tensor
    widths: torch.Tensor
    borders: torch.Tensor
    masses: torch.Tensor
    moments: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def of(cls, seen: TensorStatistics) -> Density:
        """The density of what was seen.

        Example:
            >>> density = Density.of(TensorStatistics.of(torch.tensor([0.0, 1.0, 1.0, 4.0])))
            >>> density.masses_below(torch.tensor([[0.5, 3.0, 4.0]], dtype=torch.float64))
            tensor([[1., 3., 4.]], dtype=torch.float64)
        """
        widths = torch.exp2(seen.exponents.double()).unsqueeze(1)
        start = -BINS // 2 * widths
        borders = (start + torch.arange(BINS + 1, dtype=torch.float64) * widths).clamp(
            seen.least.unsqueeze(1), seen.greatest.unsqueeze(1)
        )
        return cls._of_masses(start, widths, borders, running_sums(seen.counts.double()))

    def in_equal_bins(self, count: int) -> Density:
        """The values of each bin spread evenly over those of ``count`` equal ones that it meets.

        The new bins divide the range from the least value to the greatest.
        """
        start, end = self.borders[:, :1], self.borders[:, -1:]
        borders = start + (end - start) * torch.linspace(0, 1, count + 1, dtype=torch.float64)
        borders[:, -1:] = end
        widths = ((end - start) / count).clamp(min=torch.finfo(torch.float64).tiny)
        masses = self.masses_below(borders)
        masses[:, 0] = 0  # also if the values on the first border are all there are
        return self._of_masses(start, widths, borders, masses)

    @classmethod
    def _of_masses(
        cls, start: torch.Tensor, widths: torch.Tensor, borders: torch.Tensor, masses: torch.Tensor
    ) -> Density:
        left, right, counts = borders[:, :-1], borders[:, 1:], masses.diff()
        squares = (counts * (left * left + left * right + right * right)).sum(1, keepdim=True) / 3
        return cls(start, widths, borders, masses, running_sums(counts * (left + right) / 2), squares)

    def channel(self, number: int) -> Density:
        """The density of one channel."""
        one = slice(number, number + 1)
        return Density(
            self.start[one],
            self.widths[one],
            self.borders[one],
            self.masses[one],
            self.moments[one],
            self.squares[one],
        )

    def masses_below(self, points: torch.Tensor) -> torch.Tensor:
        """How many values lie below points, or on them; float64 [channels, points] as the points are."""
        return self._below(points)[0]

    def squared_error(self, first: torch.Tensor, step: torch.Tensor, levels: int) -> torch.Tensor:
        """The sum of the squared errors when each value is replaced by the nearest level.

        With ``c_k = first + k * step`` and the number ``m_k``, sum ``s_k`` and sum of squares of the values nearest to
        ``c_k``, it is ``sum x^2 + sum_k (c_k^2 m_k - 2 c_k s_k)``: rounding and clipping, and as many look-ups as
        there are levels, however many the bins.

        Args:
            first: The least level of each grid, float64 [channels, grids].
            step: Distance of levels of each grid, above 0, float64 [channels, grids].
            levels: How many levels each grid has.

        Returns:
            float64 [channels, grids].
        """
        centers = first.unsqueeze(2) + step.unsqueeze(2) * torch.arange(levels, dtype=torch.float64)
        between = (centers[..., :-1] + centers[..., 1:]) / 2
        below = self._below(between.flatten(1))
        masses, moments = (
            torch.cat(
                [total.new_zeros(*first.shape, 1), some.view_as(between), total.expand(*first.shape, 1)], 2
            ).diff()
            for some, total in zip(below, (self.masses[:, -1:, None], self.moments[:, -1:, None]), strict=True)
        )
        change = (centers * (centers * masses - 2 * moments)).sum(2)
        return (self.squares + change).clamp_(min=0)

    def _below(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Number and sum of the values below points."""
        bins = ((points - self.start) / self.widths).floor_().clamp_(0, self.borders.shape[1] - 2).long()
        left, right = self.borders.gather(1, bins), self.borders.gather(1, bins + 1)
        mass, moment = self.masses.gather(1, bins), self.moments.gather(1, bins)
        inside = points.clamp(left, right)
        share = torch.where(right > left, (inside - left) / (right - left), (points >= right).double())
        part = (self.masses.gather(1, bins + 1) - mass) * share
        return mass + part, moment + part * (left + inside) / 2


def running_sums(values: torch.Tensor) -> torch.Tensor:
    """Sums of the first 0, 1, 2, ... values of each row."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))
