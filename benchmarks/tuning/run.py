"""What a search costs beside its evaluations: ten trials of static int8 on MiniLM-L6, none of which meets the goal.

The processor time of the whole `quantization.fit`, divided by that of the evaluations in it: of the float model and of
ten int8 models. One process, one thread; medians of rounds in which the sizes of the evaluation set take turns.

    python benchmarks/tuning/run.py [--sizes 100 500 1066 2000] [--rounds 3] [--strategy auto]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from material import BATCH, CALIBRATED, TRIALS, Evaluation, Inputs, first, load, timed
from rich.console import Console
from rich.table import Table

from common.data import Encoded
from inc_torch import PostTrainingQuantConfig, TuningCriterion, quantization
from inc_torch.core.errors import GoalMissedWarning
from inc_torch.quantization._job import Job
from inc_torch.tuner._probes import ModelProbes

GOAL, ORDINARY = 1.2, 1066  # reviews in the usual validation set of these data
PARTS = {
    "prepare": (Job, "__init__"),
    "calibrate": (Job, "calibrate"),
    "candidates": (Job, "candidate"),
    "result": (Job, "finished"),
    "sensitivity": (ModelProbes, "signal_to_noise"),
}
QUOTED = (
    "For comparison, quoted from another machine: INC 2.6.1 took 76.8 s of processor time for ten trials on a BERT of "
    "this size and 17.2 s for one, with 100 samples to calibrate on and an evaluation that costs nothing."
)


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The seconds that each part takes inside; of parts in one another, each counts its own."""
    seconds = dict.fromkeys(PARTS, 0.0)
    inside = [0.0]

    def timing(part: str, function: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(function)
        def call(*args: object, **kwargs: object) -> object:
            inside.append(0.0)
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.process_time() - start
                seconds[part] += taken - inside.pop()
                inside[-1] += taken

        return call

    with contextlib.ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            stack.enter_context(mock.patch.object(owner, name, timing(part, getattr(owner, name))))
        yield seconds


def measure(model: torch.nn.Module, calibration: list[Inputs], data: Encoded, strategy: str) -> dict[str, float]:
    """Seconds of one search: in all, of evaluations, of what these have to compile and pack first, of other parts."""
    evaluation = Evaluation(data, twice=True)
    config = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(strategy=strategy, max_trials=TRIALS))
    with watched() as parts, warnings.catch_warnings():
        warnings.simplefilter("ignore", GoalMissedWarning)
        total = timed(
            lambda: quantization.fit(model, config, calib_dataloader=calibration, eval_func=evaluation)
        ) - sum(evaluation.again)
    if len(evaluation.seconds) != TRIALS + 1:
        message = f"The search evaluated {len(evaluation.seconds)} models: expected {TRIALS + 1}."
        raise SystemExit(message)
    inside, alone = sum(evaluation.seconds), sum(evaluation.again)
    split = {"evaluations": alone, "first runs": inside - alone, **parts}
    ratios = {"fit / evaluations": total / inside, "without first runs": total / alone}
    return {"fit": total, **split, "rest": total - sum(split.values()), **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[100, 500, ORDINARY, 2000], help="reviews to evaluate on"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--plain", action="store_true", help="the network that inc_run.py runs, written out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, calibration, reviews = load(plain=options.plain)
    sets = {size: first(reviews, size) for size in options.sizes}
    measure(model, calibration, first(reviews, BATCH), options.strategy)  # loads what is loaded once
    rounds: dict[int, list[dict[str, float]]] = {size: [] for size in sets}
    for _ in range(options.rounds):
        for size, data in sets.items():
            rounds[size].append(measure(model, calibration, data, options.strategy))

    table = Table(
        title=f"{TRIALS} trials of quantization.fit ({options.strategy}), {CALIBRATED} reviews to calibrate on: "
        "seconds of processor time",
        caption=f"Medians of {options.rounds} rounds. First runs: what an evaluation takes longer than a second one of "
        f"the same model. The goal, {GOAL:.2f}, is for {ORDINARY} reviews. {QUOTED}",
    )
    table.add_column("reviews", justify="right")
    for size, found in rounds.items():
        middle = {name: statistics.median(row[name] for row in found) for name in found[0]}
        if not table.rows:
            for name in middle:
                table.add_column(name, justify="right")
        table.add_row(str(size), *(f"{value:.2f}" for value in middle.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
