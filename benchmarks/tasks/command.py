"""What the studies ask on the command line, and how they begin."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks.tasks import clothes, reviews
from benchmarks.tasks.task import Task

TASKS = {"minilm": reviews.load, "cnn": clothes.load}


def parser(description: str, folder: Path) -> argparse.ArgumentParser:
    """Options of every study; its results go to ``folder`` by default."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--output", type=Path, default=folder)
    made.add_argument("--quick", action="store_true", help="one seed and few steps: whether it runs, in minutes")
    made.add_argument("--show", action="store_true", help="only print what is there")
    return made


def begin(options: argparse.Namespace) -> tuple[list[Task], list[int]]:
    """The tasks and seeds that are asked for; on one thread from now on."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        tasks = [TASKS[name]() for name in options.models]
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    if options.quick:
        return [task.shortened() for task in tasks], options.seeds[:1]
    return tasks, options.seeds
