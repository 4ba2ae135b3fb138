"""Which trainings there are, and how one is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.pruning_accuracy.case import Case
from benchmarks.pruning_accuracy.records import BASELINE, CRITERIA, DENSE, Pruned, Run
from benchmarks.tasks.records import Records
from benchmarks.tasks.task import Task, baseline, train

CASES = (Case("4x1", 0.8), Case("4x1", 0.9), Case("2:4", 0.5), Case("1x1", 0.9), Case("channelx1", 0.5))


def perform(task: Task, run: Run, folder: Path, records: Records[Pruned]) -> None:
    """Train and test once; what is pruned has the sparsity asked for, or it is an error."""
    model = baseline(task, run.seed, folder)
    start = time.process_time()
    zeros = 0.0
    if run.criterion != BASELINE:
        case = Case(run.pattern, run.sparsity, run.scope)
        configs = [case.config(run.criterion, task.second.steps)] if run.pattern else []
        report = train(task, model, task.second, 1000 + run.seed, configs).report()
        zeros = report.sparsity
        if run.pattern:
            case.check(report)
    right = task.right(model).numpy()
    records.add(Pruned(run, right, zeros, time.process_time() - start))


def runs_of(task: Task, seed: int, cases: Sequence[Case] = CASES, criteria: Sequence[str] = CRITERIA) -> list[Run]:
    """The dense trainings of a model with one seed, and those that prune."""
    plain = [Run(task.name, task.phases, seed, name) for name in (BASELINE, DENSE)]
    return plain + [
        Run(task.name, task.phases, seed, name, case.pattern, case.sparsity, case.scope)
        for case, name in product(cases, criteria)
    ]
