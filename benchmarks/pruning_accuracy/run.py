"""The accuracy that pruning criteria reach: MiniLM-L6 on Rotten Tomatoes and a small CNN on Fashion-MNIST.

A dense baseline is trained once for each seed. From it each run goes on for the same number of steps: dense, or pruned
by one criterion up to the middle, in updates that follow the schedule `exp`, with the layers ranked together, as is the
default. Data come in the same order in all of them. One thread; about 70 minutes in all. Every finished run is a line
in OUTPUT/results.jsonl, and a run that is found there is not made again: what was stopped goes on.

    python benchmarks/pruning_accuracy/run.py [--quick] [--show]
    python benchmarks/pruning_accuracy/run.py --models minilm --patterns 4x1 --criteria magnitude --scope local

MiniLM and the reviews come with `make env`, the images with `make fashion`.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # where the packages `benchmarks`
sys.path.insert(0, str(HERE.parents[1] / "examples"))  # and `common` lie
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402

from benchmarks.pruning_accuracy.records import CRITERIA, Pruned  # noqa: E402
from benchmarks.pruning_accuracy.runs import CASES, perform, runs_of  # noqa: E402
from benchmarks.pruning_accuracy.verdict import show  # noqa: E402
from benchmarks.tasks.command import begin, parser  # noqa: E402
from benchmarks.tasks.records import Records  # noqa: E402

PATTERNS = sorted({case.pattern for case in CASES})


def arguments() -> argparse.Namespace:
    asked = parser(__doc__ or "", HERE / "output")
    asked.add_argument("--patterns", nargs="+", choices=PATTERNS, default=PATTERNS)
    asked.add_argument("--criteria", nargs="+", choices=CRITERIA, default=CRITERIA)
    asked.add_argument("--scope", choices=("global", "local"), default="global", help="local: rank each layer alone")
    return asked.parse_args()


def main() -> None:
    options = arguments()
    console = Console()
    tasks, seeds = begin(options)
    cases = [replace(case, scope=options.scope) for case in CASES if case.pattern in options.patterns]
    runs = [(task, run) for seed in seeds for task in tasks for run in runs_of(task, seed, cases, options.criteria)]
    records = Records(options.output / "results.jsonl", Pruned)
    if not options.show:
        missing = [(task, run) for task, run in runs if run not in records]
        for task, run in track(missing, "trainings", console=console, disable=not console.is_terminal):
            perform(task, run, options.output, records)
    show([records[run] for _, run in runs if run in records], {task.name: task.guess for task in tasks}, console)


if __name__ == "__main__":
    main()
