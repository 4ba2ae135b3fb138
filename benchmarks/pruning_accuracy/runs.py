"""Which trainings there are, and how one is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.pruning_accuracy.records import BASELINE, CRITERIA, DENSE, Records, Run
from benchmarks.pruning_accuracy.task import Case, Task, train

CASES = (Case("4x1", 0.8), Case("4x1", 0.9), Case("2:4", 0.5), Case("1x1", 0.9), Case("channelx1", 0.5))


def baseline(task: Task, seed: int, folder: Path) -> nn.Module:
    """The model after the first phase, from its file or trained now."""
    model = task.build(seed)
    name = "-".join(task.name.replace(",", "").split())
    file = folder / f"{name}-{task.first}-{seed}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        train(task, model, task.first, seed)
        part = file.with_suffix(".part")
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, part)
        part.rename(file)
    return model


def perform(task: Task, run: Run, folder: Path, records: Records) -> None:
    """Train and test once; what is pruned has the sparsity asked for, or it is an error."""
    model = baseline(task, run.seed, folder)
    start = time.process_time()
    zeros = 0.0
    if run.criterion != BASELINE:
        case = Case(run.pattern, run.sparsity, run.scope)
        config = case.config(run.criterion, task.second.steps) if run.pattern else None
        manager = train(task, model, task.second, 1000 + run.seed, config)
        if manager is not None:
            report = manager.report()
            case.check(report)
            zeros = report.sparsity
    right = task.right(model)
    records.add(run, right, zeros, time.process_time() - start)


def runs_of(task: Task, seed: int, cases: Sequence[Case] = CASES, criteria: Sequence[str] = CRITERIA) -> list[Run]:
    """The dense trainings of a model with one seed, and those that prune."""
    plain = [Run(task.name, task.phases, seed, name) for name in (BASELINE, DENSE)]
    return plain + [
        Run(task.name, task.phases, seed, name, case.pattern, case.sparsity, case.scope)
        for case, name in product(cases, criteria)
    ]
