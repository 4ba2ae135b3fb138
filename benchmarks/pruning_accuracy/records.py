"""Which training a result of this study belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.tasks.records import Record

CRITERIA = ("magnitude", "gradient", "snip", "snip_momentum")
BASELINE, DENSE = "baseline", "dense"
"""In place of a criterion: before the second phase, and after one without pruning."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task: Name of the model and the data.
        phases: Steps and learning rates of both phases.
        seed: Of the head or all weights, and of the order of the data.
        criterion: What decided which weights go, or `BASELINE`, or `DENSE`.
        pattern: What went together; none where nothing was pruned.
        sparsity: Which share of them was to go.
        scope: Whether layers were ranked together.
    """

    task: str
    phases: str
    seed: int
    criterion: str
    pattern: str = ""
    sparsity: float = 0.0
    scope: str = "global"


@dataclass(frozen=True)
class Pruned(Record):
    """What came out of a training.

    Example:
        >>> import numpy as np
        >>> line = Pruned(Run("task", "1x1", 0, "dense"), np.array([True, False, True]), 0.0, 1.5).to_line()
        >>> Pruned.of_line(line).right.tolist()
        [True, False, True]
    """

    RUN: ClassVar[type[Run]] = Run
