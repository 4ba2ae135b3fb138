"""What ten trials of a tuning search cost, as a multiple of their evaluations alone.

MiniLM-L6 (real weights, a new classification head) on Rotten Tomatoes reviews: `quantization.fit` with a goal that no
model meets, one calibration and ten trials, each a whole int8 model that is evaluated on all reviews. Evaluations are
those of the float model and of the ten trials; what is above them is copying, calibrating, searching ranges,
converting, the study, and the final model with its sensitivities. One thread; CPU time; the median of the rounds.

    python benchmarks/tuning_trials.py [--reviews 100 500 2000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from common.data import encode, load_reviews
from common.model import load_pretrained
from inc_torch import PostTrainingQuantConfig, quantization
from inc_torch.core.errors import GoalMissedWarning

TRIALS, BATCH, LENGTH, GOAL = 10, 32, 48, 1.2
Data = list[dict[str, torch.Tensor]]


def measured(model: nn.Module, calibration: Data, evaluation: Data) -> tuple[float, float]:
    """CPU seconds of a whole search, and of the evaluations in it."""
    inside: list[float] = []

    def evaluate(candidate: nn.Module) -> float:
        began = time.process_time()
        with torch.no_grad():
            for inputs in evaluation:
                candidate(**inputs)
        inside.append(time.process_time() - began)
        return 1.0 if len(inside) == 1 else 0.5  # no trial meets the goal

    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GoalMissedWarning)
        fitted = quantization.fit(model, PostTrainingQuantConfig(max_trials=TRIALS), calibration, eval_func=evaluate)
    seconds = time.process_time() - began
    if fitted is None or len(inside) != 1 + TRIALS:
        message = f"Expected {TRIALS} trials, got {len(inside) - 1}."
        raise RuntimeError(message)
    return seconds, sum(inside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reviews", nargs="+", type=int, default=[100, 500, 2000])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_pretrained(0)
    model.eval()
    splits = load_reviews()
    calibration = [batch.inputs for batch in encode(splits.train.first(100), tokenizer, LENGTH).batches(BATCH)]
    table = Table(title=f"{TRIALS} trials on MiniLM-L6, one thread, CPU seconds")
    for title in ("reviews", "whole search", "evaluations alone", "ratio", f"goal {GOAL}"):
        table.add_column(title, justify="right")
    for count in arguments.reviews:
        evaluation = [batch.inputs for batch in encode(splits.test.first(count), tokenizer, LENGTH).batches(BATCH)]
        rounds = [measured(model, calibration, evaluation) for _ in range(arguments.rounds)]
        ratio = statistics.median(whole / inside for whole, inside in rounds)
        whole, inside = (statistics.median(column) for column in zip(*rounds, strict=True))
        verdict = "held" if ratio <= GOAL else "missed"
        table.add_row(str(count), f"{whole:.1f}", f"{inside:.1f}", f"{ratio:.2f}", verdict)
    Console().print(table)


if __name__ == "__main__":
    main()
