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

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from transformers.utils import logging  # noqa: E402

from benchmarks.pruning_accuracy import clothes, reviews  # noqa: E402
from benchmarks.pruning_accuracy.records import CRITERIA, Records  # noqa: E402
from benchmarks.pruning_accuracy.runs import CASES, perform, runs_of  # noqa: E402
from benchmarks.pruning_accuracy.verdict import show  # noqa: E402

TASKS = {"minilm": reviews.load, "cnn": clothes.load}
PATTERNS = sorted({case.pattern for case in CASES})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=PATTERNS)
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=CRITERIA)
    parser.add_argument("--scope", choices=("global", "local"), default="global", help="local: rank each layer alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=HERE / "output")
    parser.add_argument("--quick", action="store_true", help="one seed and few steps: whether it runs, in minutes")
    parser.add_argument("--show", action="store_true", help="only print what is there")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    console = Console()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    try:
        tasks = [TASKS[name]() for name in options.models]
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    seeds = options.seeds
    if options.quick:
        tasks, seeds = [task.shortened() for task in tasks], seeds[:1]
    cases = [replace(case, scope=options.scope) for case in CASES if case.pattern in options.patterns]
    runs = [(task, run) for seed in seeds for task in tasks for run in runs_of(task, seed, cases, options.criteria)]
    options.output.mkdir(parents=True, exist_ok=True)
    records = Records(options.output / "results.jsonl")
    if not options.show:
        missing = [(task, run) for task, run in runs if run not in records]
        for task, run in track(missing, "trainings", console=console, disable=not console.is_terminal):
            perform(task, run, options.output, records)
    show([records[run] for _, run in runs if run in records], {task.name: task.guess for task in tasks}, console)


if __name__ == "__main__":
    main()
