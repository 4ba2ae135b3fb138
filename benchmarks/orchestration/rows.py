"""The lines of the tables: an arm over its seeds, beside a dense model that was trained as long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.orchestration.arms import DENSE, Arm
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
        error: The standard error of the mean difference.
    """

    task: str
    arm: Arm
    outcomes: tuple[Outcome, ...]
    loss: Difference
    relative: float
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
        """The standard deviation from seed to seed; 0 for one seed."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.outcomes) > 1 else 0.0

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
    paired: list[tuple[Arm, list[Outcome], Difference]] = []
    for arm in arms:
        own, dense = by_arm.get(arm, {}), by_arm.get(Arm(DENSE[arm.phases]), {})
        seeds = sorted(own.keys() & dense.keys())
        if seeds:
            pair = [own[seed] for seed in seeds], [dense[seed] for seed in seeds]
            paired.append((arm, pair[1], Difference.of((task, arm), *pair)))
    spread = spread_of([loss for arm, _, loss in paired if arm.text not in DENSE.values()])
    rows = []
    for arm, dense, loss in paired:
        relative = loss.mean / float(np.mean([outcome.accuracy for outcome in dense]))
        own = tuple(by_arm[arm][seed] for seed in sorted(by_arm[arm]))
        rows.append(Row(task, arm, own, loss, relative, loss.error(spread)))
    return rows
