"""How exactly a difference between two accuracies is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.tasks.records import Record


@dataclass(frozen=True)
class Difference:
    """By how much one kind of training is more accurate than another, in points.

    Attributes:
        row: Where.
        seeds: For each seed, both trained and tested on the same data.
        test_error: The standard error that a test set of this size leaves in their mean: of the mean over the items,
            where an item counts for how many of the seeds it is right in one and wrong in the other.
    """

    row: tuple[Any, ...]
    seeds: tuple[float, ...]
    test_error: float

    @classmethod
    def of(cls, row: tuple[Any, ...], first: Sequence[Record], second: Sequence[Record]) -> Difference:
        """Compare runs of the same seeds.

        Example:
            >>> from benchmarks.pruning_accuracy.records import Pruned, Run
            >>> right, wrong = np.array([True, True, True, False]), np.array([True, True, False, False])
            >>> records = [Record(Run("task", "", 0, "snip"), answers, 0.0, 0.0) for answers in (right, wrong)]
            >>> difference = Difference.of(("task", "1x1", 0.9), records[:1], records[1:])
            >>> difference.seeds, difference.test_error
            ((25.0,), 25.0)
        """
        items = 100.0 * np.array([a.right.astype(float) - b.right for a, b in zip(first, second, strict=True)])
        error = items.mean(0).std(ddof=1) / math.sqrt(items.shape[1])
        return cls(row, tuple(items.mean(1).tolist()), float(error))

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.seeds) / len(self.seeds)

    def error(self, spread: float) -> float:
        """The standard error of the mean, where differences of single seeds spread by ``spread``."""
        return math.hypot(spread / math.sqrt(len(self.seeds)), self.test_error)


def spread_of(differences: Sequence[Difference]) -> float:
    """The standard deviation of a difference from seed to seed, one for all rows; 0 where each has one seed only.

    Example:
        >>> rows = [Difference(("task", "1x1", 0.9), seeds, 0.0) for seeds in ((1.0, 3.0), (7.0, 5.0))]
        >>> spread_of(rows) == math.sqrt(2)
        True
    """
    squares = sum((value - each.mean) ** 2 for each in differences for value in each.seeds)
    free = sum(len(each.seeds) - 1 for each in differences)
    return math.sqrt(squares / free) if free else 0.0
