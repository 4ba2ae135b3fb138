"""Units ranked where one process holds all of them: by counting the digits of scores, without sorting them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch

from inc_torch import kernels
from inc_torch.pruners._compiled import can_run
from inc_torch.pruners._select import DIGITS

__all__ = ["DigitRanking"]

_WORTH_A_COPY = 4
"""Scores with the digit found are copied if they are at most one in so many; else all are read again."""

_Integers = np.ndarray[Any, np.dtype[np.int64]]


@final
class DigitRanking:
    """A `Ranking` of units that all lie in this process, by compiled kernels.

    Scores are float32 and not negative, so they are ordered as their bits are. First digits are counted once, layer by
    layer; whatever layers are ranked together then, their threshold is found in the sum of their counts. The few
    scores with that first digit are copied, and the next digits counted in the copy. Nothing is written until `kept`,
    which makes the mask of all layers in one pass.

    Args:
        scores: Unit scores of all layers, flat, layers in order.
        sizes: Units of each layer.
    """

    def __init__(self, scores: torch.Tensor, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        ends = torch.tensor(self.sizes).cumsum(0)
        self._pieces = torch.stack([ends - torch.tensor(self.sizes), ends], 1)
        self._scores = scores
        self._first: tuple[_Integers, int] | None = None
        self._thresholds = np.zeros(len(self.sizes), np.int64)
        self._ties = np.zeros(len(self.sizes), np.int64)
        self._pruned = np.zeros(len(self.sizes), np.int64)
        self._undecided: dict[int, int] = {}

    @staticmethod
    def can_rank(scores: torch.Tensor) -> bool:
        """Whether kernels can work on these scores."""
        return can_run(scores)

    @property
    def pruned(self) -> Sequence[int]:
        """See `Ranking`."""
        pruned: list[int] = self._pruned.tolist()
        return pruned

    def prune(self, groups: Sequence[Sequence[int]], counts: Sequence[int]) -> list[int]:
        """See `Ranking`."""
        together = [(group, count) for group, count in zip(groups, counts, strict=True) if len(group) > 1]
        # How many units of a layer go that is ranked alone is known; which ones, nobody asks before `kept`.
        alone = {group[0]: count for group, count in zip(groups, counts, strict=True) if len(group) == 1}
        for layer, count in alone.items():
            self._pruned[layer] = count
        for group, _ in together:
            for layer in group:
                self._undecided.pop(layer, None)
        self._undecided |= alone
        if together:
            self._decide([group for group, _ in together], [count for _, count in together])
        pruned: list[int] = self._pruned[[layer for group in groups for layer in group]].tolist()
        return pruned

    def kept(self) -> torch.Tensor:
        """See `Ranking`."""
        if self._undecided:
            self._decide([[layer] for layer in self._undecided], list(self._undecided.values()))
            self._undecided = {}
        keep = torch.empty_like(self._scores, dtype=torch.bool)
        thresholds, ties = torch.from_numpy(self._thresholds), torch.from_numpy(self._ties)
        kernels.Program([kernels.keep_largest(self._scores, self._pieces, thresholds, ties, keep)]).run()
        return keep

    def _decide(self, groups: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        """Find for each group the score at which ``count`` is reached, and for its layers how many of that score go."""
        lengths = [len(group) for group in groups]
        starts = np.cumsum([0, *lengths[:-1]])
        of_group = np.repeat(np.arange(len(groups)), lengths)
        layers = np.array([layer for group in groups for layer in group])
        remaining = np.array(counts)
        prefixes = np.zeros(len(groups), np.int64)
        below = np.zeros(len(layers), np.int64)
        scores, pieces = self._scores, self._pieces[layers]
        for shift, width in DIGITS:
            if shift == DIGITS[0][0]:
                upto, least = self._first_digits
                upto = upto[layers]
            else:
                upto, least = _counted(scores, pieces, prefixes[of_group], shift, width)
            of_all = np.add.reduceat(upto, starts)
            digits = (of_all < remaining[:, None]).sum(1)
            smaller = _before(upto, digits[of_group])
            equal = np.take_along_axis(upto, digits[of_group, None], 1)[:, 0] - smaller
            remaining = remaining - _before(of_all, digits)
            below += smaller
            prefixes = (prefixes << width) + digits + least
            if shift and _WORTH_A_COPY * equal.sum() <= (pieces[:, 1] - pieces[:, 0]).sum():
                scores, pieces = _collected(scores, pieces, prefixes[of_group], equal, shift)
        in_order = equal.cumsum() - equal
        ties = (remaining[of_group] - (in_order - in_order[starts][of_group])).clip(0, equal)
        self._thresholds[layers], self._ties[layers], self._pruned[layers] = prefixes[of_group], ties, below + ties

    @property
    def _first_digits(self) -> tuple[_Integers, int]:
        """See `_counted`, of the first digits of all layers."""
        if self._first is None:
            self._first = _counted(self._scores, self._pieces, np.zeros(len(self.sizes), np.int64), *DIGITS[0])
        return self._first


def _counted(
    scores: torch.Tensor, pieces: torch.Tensor, prefixes: _Integers, shift: int, width: int
) -> tuple[_Integers, int]:
    """How many scores of each piece with its prefix have each digit or a smaller one.

    Returns:
        The counts [pieces, digits], from the least digit that occurs to the greatest, and that least digit.
    """
    found = torch.empty(len(pieces), 1 << width, dtype=torch.int64)
    kernels.Program([kernels.count_digits(scores, pieces, torch.from_numpy(prefixes), found, shift=shift)]).run()
    counts: _Integers = found.numpy()
    used = np.flatnonzero(counts.sum(0))
    least, greatest = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
    return counts[:, least : greatest + 1].cumsum(1), least


def _collected(
    scores: torch.Tensor, pieces: torch.Tensor, prefixes: _Integers, equal: _Integers, shift: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``equal`` scores of each piece that have its prefix, as bits, and where they lie."""
    ends = torch.from_numpy(equal.cumsum())
    places = ends - torch.from_numpy(equal)
    output = torch.empty(max(1, int(equal.sum())), dtype=torch.int32)
    step = kernels.collect_prefix(scores, pieces, torch.from_numpy(prefixes), places, output, shift=shift)
    kernels.Program([step]).run()
    return output, torch.stack([places, ends], 1)


def _before(upto: _Integers, digits: _Integers) -> _Integers:
    """Of each row what is counted before its digit."""
    rows = np.arange(len(digits))
    counted: _Integers = np.where(digits > 0, upto[rows, digits - 1], 0)
    return counted
