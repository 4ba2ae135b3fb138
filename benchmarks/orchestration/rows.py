"""The lines of the tables: an arm over its seeds, beside a dense model that was trained as long."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.orchestration.arms import DENSE, TEACHER, Arm
from benchmarks.orchestration.records import Outcome
from benchmarks.tasks.difference import Difference, spread_of


@dataclass(frozen=True)
class Row:
    """An arm over its seeds.

    Attributes:
        task: Name of the model and the data.
        arm: Which one.
        outcomes: One for each seed.
        loss: Its accuracy minus that of the dense model trained as long, for the seeds that both have.
        relative: The mean of it, as a share of the accuracy of that dense model.
        beside_teacher: The same beside the teacher, however long it was trained; none if it is not there.
        error: The standard error of the mean difference.
    """

    task: str
    arm: Arm
    outcomes: tuple[Outcome, ...]
    loss: Difference
    relative: float
    beside_teacher: float | None
    error: float

    @property
    def accuracies(self) -> list[float]:
        """In points, for each seed."""
        return [outcome.accuracy for outcome in self.outcomes]

    @property
    def accuracy(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float:
        """The standard deviation from seed to seed; not a number for one seed."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.outcomes) > 1 else math.nan

    @property
    def zeros(self) -> float:
        """The mean share of them."""
        return float(np.mean([outcome.zeros for outcome in self.outcomes]))

    @property
    def megabytes(self) -> tuple[float, float]:
        """The file as it is, and compressed."""
        sizes = np.mean([(outcome.size, outcome.packed) for outcome in self.outcomes], axis=0) / 1e6
        return float(sizes[0]), float(sizes[1])


def rows_of(outcomes: Iterable[Outcome], arms: Sequence[Arm]) -> dict[str, list[Row]]:
    """By task, in the order of the arms; what is not there, or has no dense model beside it, is left out."""
    found: dict[str, dict[Arm, dict[int, Outcome]]] = {}
    for outcome in outcomes:
        run = outcome.run
        found.setdefault(run.task, {}).setdefault(Arm(run.arm, run.sparsity), {})[run.seed] = outcome
    return {task: rows_of_task(task, by_arm, arms) for task, by_arm in found.items()}


def rows_of_task(task: str, by_arm: dict[Arm, dict[int, Outcome]], arms: Sequence[Arm]) -> list[Row]:
    """All rows of one task, whose differences share one spread between seeds."""
    paired = [
        (arm, beside(by_arm, arm, Arm(DENSE[arm.phases])), beside(by_arm, arm, Arm(TEACHER)))
        for arm in arms
        if beside(by_arm, arm, Arm(DENSE[arm.phases]))
    ]
    losses = {arm: Difference.of((task, arm), *zip(*pairs, strict=True)) for arm, pairs, _ in paired}
    spread = spread_of([loss for arm, loss in losses.items() if arm.text not in DENSE.values()])
    return [
        Row(
            task,
            arm,
            tuple(by_arm[arm][seed] for seed in sorted(by_arm[arm])),
            losses[arm],
            relative(pairs),
            relative(with_teacher) if with_teacher else None,
            losses[arm].error(spread),
        )
        for arm, pairs, with_teacher in paired
    ]


def beside(by_arm: dict[Arm, dict[int, Outcome]], arm: Arm, other: Arm) -> list[tuple[Outcome, Outcome]]:
    """What came out of both, for the seeds that both have."""
    first, second = by_arm.get(arm, {}), by_arm.get(other, {})
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def relative(pairs: Sequence[tuple[Outcome, Outcome]]) -> float:
    """By how much the first are more accurate, as a share of the accuracy of the second.

    Example:
        >>> relative([(Outcome("a", np.array([1, 0]), 0, 1, 1, 1), Outcome("b", np.array([1, 1]), 0, 1, 1, 1))])
        -0.5
    """
    first, second = (sum(outcome.accuracy for outcome in side) for side in zip(*pairs, strict=True))
    return first / second - 1
