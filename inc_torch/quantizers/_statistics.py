"""What calibration remembers of a tensor: enough for every observer, without the data.

Histograms have bins whose width is a power of two and whose borders are multiples of it. So two histograms are added
exactly, in any order and from any number of processes: the finer one merges pairs of bins until widths agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch

__all__ = ["BINS", "TensorStatistics"]

BINS = 8192
"""Bins from ``-BINS / 2`` to ``BINS / 2`` widths around 0; the greatest magnitude reaches at least half of one side."""

_HALF = BINS // 2
_PIECE = 2**16
"""Values that are counted at once."""
_LEAST_EXPONENT = -126
"""Finer bins would leave the range of float32."""


@final
@dataclass(slots=True)
class TensorStatistics:
    """Extremes, their history and a histogram of each channel; one channel if the tensor is taken as a whole.

    Attributes:
        low: Least value of each channel and 0, float64 [channels].
        high: Greatest value of each channel and 0, float64 [channels].
        exponents: Bins are ``2 ** exponent`` wide, int64 [channels].
        counts: Values in each bin, int64 [channels, BINS]; bin ``i`` holds ``[i - BINS / 2, i - BINS / 2 + 1)`` widths.
        batch_lows: ``low`` of every batch in the order they came, without the 0.
        batch_highs: ``high`` of every batch in the order they came, without the 0.
    """

    low: torch.Tensor
    high: torch.Tensor
    exponents: torch.Tensor
    counts: torch.Tensor
    batch_lows: list[torch.Tensor] = field(default_factory=list)
    batch_highs: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, values: torch.Tensor, axis: int | None = None) -> TensorStatistics:
        """Look at one tensor.

        Args:
            values: Finite and not empty, any floating dtype and rank.
            axis: Its slices are the channels; None takes the tensor as a whole.

        Example:
            >>> seen = TensorStatistics.of(torch.tensor([[1.0, 2.0], [-3.0, 0.5]]), axis=0)
            >>> seen.low.tolist(), seen.high.tolist(), seen.counts.sum(1).tolist()
            ([0.0, -3.0], [2.0, 0.5], [2, 2])
        """
        values = values.detach()
        if axis is None:
            rows = values.reshape(1, -1)
            extremes = [extreme.view(1) for extreme in torch.aminmax(values)]
        else:
            rows = values.movedim(axis, 0).flatten(1)
            extremes = [rows.amin(1), rows.amax(1)]
        least, greatest = (extreme.cpu().double() for extreme in extremes)
        low, high = least.clamp(max=0.0), greatest.clamp(min=0.0)
        exponents = _exponents_for(torch.maximum(-low, high))
        return cls(low, high, exponents, _counts(rows, exponents), [least], [greatest])

    def add(self, later: TensorStatistics) -> None:
        """Take in what was seen of a later batch."""
        self.low, self.high = torch.minimum(self.low, later.low), torch.maximum(self.high, later.high)
        exponents = torch.maximum(self.exponents, later.exponents)
        self.counts = _coarsened(self.counts, exponents - self.exponents) + _coarsened(
            later.counts, exponents - later.exponents
        )
        self.exponents = exponents
        self.batch_lows += later.batch_lows
        self.batch_highs += later.batch_highs

    def copy(self) -> TensorStatistics:
        """A copy that `add` can change."""
        return TensorStatistics(
            self.low, self.high, self.exponents, self.counts, [*self.batch_lows], [*self.batch_highs]
        )

    @property
    def least(self) -> torch.Tensor:
        """Least value of each channel, which may be above 0; float64 [channels]."""
        return torch.stack(self.batch_lows).amin(0)

    @property
    def greatest(self) -> torch.Tensor:
        """Greatest value of each channel, which may be below 0; float64 [channels]."""
        return torch.stack(self.batch_highs).amax(0)

    def centers(self) -> torch.Tensor:
        """The middle of every bin, float64 [channels, BINS]."""
        widths = torch.exp2(self.exponents.double()).unsqueeze(1)
        return (torch.arange(BINS, dtype=torch.float64) - _HALF + 0.5) * widths


def _exponents_for(magnitudes: torch.Tensor) -> torch.Tensor:
    """The least exponents whose bins reach beyond the magnitudes, as float32 has them.

    Beyond: a value on the outermost border would count in the bin below it, and in the bin above it once bins are
    merged.
    """
    _, exponents = torch.frexp(magnitudes.to(torch.float32).double() / _HALF)
    exponents = torch.where(magnitudes > 0, exponents.long(), _LEAST_EXPONENT)
    return exponents.clamp_(min=_LEAST_EXPONENT)


def _counts(rows: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Count each row by itself, some rows or a part of one row at a time."""
    inverse_widths = torch.exp2(-exponents.double()).to(device=rows.device, dtype=torch.float32).unsqueeze(1)
    at_once = max(1, _PIECE // max(1, rows.shape[1]))
    groups = zip(torch.split(rows, at_once), torch.split(inverse_widths, at_once), strict=True)
    return torch.cat([_counts_of_group(group, widths) for group, widths in groups]).cpu()


def _counts_of_group(rows: torch.Tensor, inverse_widths: torch.Tensor) -> torch.Tensor:
    first_bins = torch.arange(len(rows), device=rows.device).unsqueeze(1) * BINS
    total = torch.zeros(len(rows) * BINS, dtype=torch.int64, device=rows.device)
    for piece in torch.split(rows, _PIECE, dim=1):
        bins = (piece.to(torch.float32) * inverse_widths).floor_().add_(_HALF).clamp_(0, BINS - 1)
        total += torch.bincount((bins.to(torch.int64) + first_bins).flatten(), minlength=len(total))
    return total.view(-1, BINS)


def _coarsened(counts: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Merge ``2 ** shift`` neighbouring bins of each channel into one."""
    if not shifts.any():
        return counts
    positions = (torch.arange(BINS) - _HALF) >> shifts.unsqueeze(1).clamp(max=BINS.bit_length())
    return torch.zeros_like(counts).scatter_add_(1, positions + _HALF, counts)
