"""How many trials strategies take on the cases of examples/tuning, and what the models that they find are worth.

Searches are kept in ``--output``, a folder for each, and are not run again; so this can be ended and begun again.
Latencies are measured at the end, on all models of a case side by side in one process.

    python benchmarks/tuning/strategies.py [reviews photos] [--strategies auto basic ...] [--trials 100]
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))  # where the package `common`
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "tuning"))  # and the cases lie

import torch
from case import Case, agreement, milliseconds
from rich.console import Console
from rich.table import Table
from run import load, tune
from torch import nn
from transformers.utils import logging

import inc_torch
from inc_torch import PostTrainingQuantConfig, quantization
from inc_torch.core.errors import GoalMissedWarning
from inc_torch.tuning import TuningResult

HERE = Path(__file__).resolve().parent
KEPT = HERE.parents[1] / "examples" / "tuning" / "output"
CASES = ("reviews", "photos")
STRATEGIES = ("auto", "basic", "mse", "mse_v2", "hawq_v2", "tpe", "bayesian", "random")
console = Console()


def search(case: Case, strategy: str, trials: int, folder: Path) -> None:
    """Run one search, and keep the model that it finds, its trials, and the seconds of processor time."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GoalMissedWarning)
        tuned = tune(case, strategy, trials)
    seconds = time.process_time() - start
    tuned.save(folder / "model")
    (folder / "seconds").write_text(f"{seconds:.1f}\n")
    tuned.tuning.save(folder / "result.json")  # last: what has it is complete


def table_of(case: Case, name: str, folders: dict[str, Path], trials: int) -> Table:
    """A line for each strategy, and for the models that need none."""
    models: dict[str, nn.Module] = {
        "float32": case.model,
        "int8, default": quantization.fit(case.model, PostTrainingQuantConfig(), calib_dataloader=case.calibration),
        **{strategy: inc_torch.load(folder / "model", model=case.rebuild()) for strategy, folder in folders.items()},
    }
    times = milliseconds(models, case.calibration[0][0])
    results = {strategy: TuningResult.load(folder / "result.json") for strategy, folder in folders.items()}
    table = Table(
        title=f"{name}: at least {1 - case.tolerable_loss} of the answers as in float, {trials} trials at most"
    )
    table.add_column("strategy")
    for column in ("trials to the goal", "in all", "ops in float", "same answers", "others", "ms", "search, s"):
        table.add_column(column, justify="right")
    for key, model in models.items():
        if key in results:
            result = results[key]
            first = next((str(trial.number) for trial in result.trials if trial.is_met), "-")
            seconds = f"{float((folders[key] / 'seconds').read_text()):.0f}"
            cells = [first, str(len(result.trials)), str(len(result.fallen_back))]
        else:
            cells, seconds = ["", "", "all" if model is case.model else "0"], ""
        same = [f"{agreement(model, batches):.4f}" for batches in (case.evaluation, case.test)]
        table.add_row(key, *cells, *same, f"{times[key]:.0f}", seconds)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--output", type=Path, default=HERE / "output")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in options.cases:
        case = load(name, KEPT)
        folders = {strategy: options.output / name / strategy for strategy in options.strategies}
        for strategy, folder in folders.items():
            if not (folder / "result.json").is_file():
                console.print(f"{name}: {strategy} ...")
                search(case, strategy, options.trials, folder)
        console.print(table_of(case, name, folders, options.trials))


if __name__ == "__main__":
    main()
