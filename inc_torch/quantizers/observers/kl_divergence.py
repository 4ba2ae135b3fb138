"""The range of least Kullback-Leibler divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from inc_torch.quantizers._density import running_sums
from inc_torch.quantizers._observers import OBSERVERS, Levels
from inc_torch.quantizers._range_search import search_range
from inc_torch.quantizers._statistics import BINS, TensorStatistics

_HALF = BINS // 2
_SHARES = torch.logspace(0, -2.1, 127, dtype=torch.float64)
"""Each 4 % below the one before."""
_NO_FACTORS = torch.empty(0, dtype=torch.float64)
_NEARLY_EMPTY = 0.5
"""Values that an empty level of ``Q`` counts for, if clipped values make it hold some in ``P``."""


@final
@OBSERVERS.register("kl_divergence", summary="least information lost by rounding and clipping, a search by entropy")
@dataclass(frozen=True, slots=True)
class KlDivergence:
    """The range with the least ``KL(P || Q) = sum_i p_i log(p_i / q_i)`` over the bins of the histogram.

    ``P`` is the histogram inside the range, with what lies beyond added to the outermost bins; ``Q`` is the histogram
    inside the range, with the mass of each level spread evenly over those of its bins that hold something in ``P``;
    both are normalised. A level that is empty but for the clipped values counts half a value in ``Q``: its divergence
    would be infinite. Ranges that clip more values than they keep are passed over, as are those with fewer bins than
    levels.

    - Symmetric levels: thresholds of ``|x|`` are searched, with half of the levels between 0 and the threshold.
    - Asymmetric levels: both ends are searched, with all levels between them, see `search_range`.

    The values at 0 are rounded without error by every grid, so the bin that begins there counts no more than the fuller
    of its neighbours: after a ReLU, its mass would drown the rest. The search goes from the extremes down to a 126th of
    them, by 4 %. The same statistics give the same range. Nothing to set.

    Reference: Migacz, 8-bit Inference with TensorRT, GTC 2017. The ``kl`` of INC 2.6.1 is another search, see ``kl``.

    Example:
        >>> seen = TensorStatistics.of(torch.linspace(-3, 3, 1000).pow(3))
        >>> low, high = KlDivergence().range(seen, Levels.of(4, signed=True))
        >>> -27 <= low.item() < 0 < high.item() <= 27
        True
    """

    def range(self, seen: TensorStatistics, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
        counts = _without_zeros(seen.counts.double())
        count = levels.high - levels.low + 1
        if levels.symmetric:
            folded = counts[:, _HALF:] + counts[:, :_HALF].flip(1)
            loss = _Divergence.of(folded, 0, seen, count // 2).loss
        else:
            loss = _Divergence.of(counts, _HALF, seen, count).loss
        return search_range(seen, levels, loss, shares=_SHARES, factors=_NO_FACTORS)


def _without_zeros(counts: torch.Tensor) -> torch.Tensor:
    """Lower the bin that begins at 0 to the fuller of its neighbours."""
    neighbours = torch.maximum(counts[:, _HALF - 1], counts[:, _HALF + 1])
    counts[:, _HALF] = torch.minimum(counts[:, _HALF], neighbours)
    return counts


@final
@dataclass(frozen=True, slots=True)
class _Divergence:
    """Sums over the bins from which the divergence of any range follows, with one look-up for each level.

    All levels of ``Q`` are flat, so ``sum p log q`` is a sum over levels, and ``sum p log p`` a difference of two sums.

    Attributes:
        counts: Values in each bin, float64 [channels, bins].
        masses: Sums of the counts below each border, float64 [channels, bins + 1].
        entropies: Sums of ``count * log(count)`` below each border, float64 [channels, bins + 1].
        filled: How many bins below each border hold something, float64 [channels, bins + 1].
        widths: Of the bins, float64 [channels, 1].
        zero: The bin that begins at 0; if it is the first, only the upper end of a range is looked at.
        levels: How many levels a range has.
    """

    counts: torch.Tensor
    masses: torch.Tensor
    entropies: torch.Tensor
    filled: torch.Tensor
    widths: torch.Tensor
    zero: int
    levels: int

    @classmethod
    def of(cls, counts: torch.Tensor, zero: int, seen: TensorStatistics, levels: int) -> _Divergence:
        widths = torch.exp2(seen.exponents.double()).unsqueeze(1)
        entropies, filled = running_sums(torch.xlogy(counts, counts)), running_sums((counts > 0).double())
        return cls(counts, running_sums(counts), entropies, filled, widths, zero, levels)

    def loss(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """The divergence of ranges; infinite where they are passed over."""
        first = (torch.floor(low / self.widths) + self.zero).clamp(min=0).long()
        last = (torch.floor(high / self.widths) + self.zero).clamp(max=self.counts.shape[1] - 1).long()
        kept = _at(self.masses, last + 1) - _at(self.masses, first)
        eligible = (last + 1 - first >= self.levels) & (kept >= self.masses[:, -1:] / 2)
        return torch.where(eligible, self._of_bins(first, last), torch.inf)

    def _of_bins(self, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """The divergence of the ranges from bin ``first`` to bin ``last``, int64 [channels, candidates]."""
        shares = torch.arange(self.levels + 1).view(1, 1, -1)
        borders = first.unsqueeze(2) + shares * (last + 1 - first).unsqueeze(2) // self.levels
        inside, filled = (_at(sums, borders).diff() for sums in (self.masses, self.filled))
        clipped = inside.clone()
        clipped[..., 0] += _at(self.masses, first)
        clipped[..., -1] += self.masses[:, -1:] - _at(self.masses, last + 1)

        entropy = _at(self.entropies, last + 1) - _at(self.entropies, first)
        for end, level in ((first, 0), (last, -1)):
            before = _at(self.counts, end)
            after = before + (clipped - inside)[..., level]
            entropy += torch.xlogy(after, after) - torch.xlogy(before, before)
            filled[..., level] += (after > 0).double() - (before > 0).double()

        inside = torch.where(clipped > inside, inside.clamp(min=_NEARLY_EMPTY), inside)
        cross = torch.xlogy(clipped, inside / filled.clamp(min=1)).sum(2)
        total = self.masses[:, -1:]
        return (entropy - cross) / total + torch.log(inside.sum(2) / total)


def _at(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Elements of each channel, shaped as the positions are."""
    return values.gather(1, positions.flatten(1)).view_as(positions)
