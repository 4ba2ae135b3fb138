"""Quantize a trained model so that its answers stay those of the float model, by a search among mixed models.

    python run.py reviews [--strategy mse_v2] [--trials 100] [--output examples/tuning/output] [--quick]
    python run.py photos  ...

``reviews`` is MiniLM-L6, fine-tuned on Rotten Tomatoes; ``photos`` is EfficientNet-Lite0 with its ImageNet weights.
``--quick`` makes of the reviews made-up ones, and of MiniLM a tiny model: seconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the package `common` lies
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait crawl on a busy machine

from case import Case, agreement, milliseconds
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers.utils import logging as transformers_logging

from inc_torch import AccuracyCriterion, CompressionReport, PostTrainingQuantConfig, TuningCriterion, quantization

HERE = Path(__file__).resolve().parent
FLOAT, DEFAULT, TUNED = "float32", "int8, default", "tuned"
console = Console()


def load(name: str, folder: Path, *, quick: bool = False) -> Case:
    """The case of this name; what it keeps for another run lies in ``folder``."""
    if name == "photos":
        from photos import load_case as load_photos

        return load_photos()
    from reviews import load_case as load_reviews

    return load_reviews(folder / "reviews-float", quick=quick)


def tune(case: Case, strategy: str, trials: int) -> nn.Module:
    """The first model that answers enough like the float model; the best one, if none does."""
    config = PostTrainingQuantConfig(
        accuracy_criterion=AccuracyCriterion(tolerable_loss=case.tolerable_loss),
        tuning_criterion=TuningCriterion(strategy=strategy, max_trials=trials, objective="latency"),
    )
    return quantization.fit(
        case.model,
        config,
        calib_dataloader=case.calibration,
        eval_dataloader=case.evaluation,  # its labels are the float model's answers
        eval_metric={"topk": 1},
    )


def compare(case: Case, models: dict[str, nn.Module], title: str) -> Table:
    """One line for each model, measured on the model as it is."""
    seen, unseen = (sum(len(labels) for _, labels in batches) for batches in (case.evaluation, case.test))
    times = milliseconds(models, case.calibration[0][0])
    table = Table(title=title, caption="ms: processor time of a batch of the calibration, one thread.")
    table.add_column("model", no_wrap=True)
    columns = ["float ops", f"same answers, {seen} of the search", f"{unseen} others"]
    for column in (*columns, *["accuracy there"] * bool(case.labelled), "MB", "ms"):
        table.add_column(column, justify="right")
    for name, model in models.items():
        count = f"{len(model.tuning.fallen_back)}" if name == TUNED else "all" if name == FLOAT else "0"
        same = [f"{agreement(model, batches):.4f}" for batches in (case.evaluation, case.test)]
        right = [f"{agreement(model, case.labelled):.4f}"] if case.labelled else []
        size = CompressionReport.measure(model).size_bytes / 1e6
        table.add_row(name, count, *same, *right, f"{size:.1f}", f"{times[name]:.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("reviews", "photos"))
    parser.add_argument("--strategy", default="mse_v2", help="who proposes what is tried (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=100, help="the most there may be")
    parser.add_argument("--output", type=Path, default=HERE / "output")
    parser.add_argument("--quick", action="store_true", help="made-up reviews and a tiny model, in seconds")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():  # at a terminal progress shows by itself
        logging.basicConfig(format="%(message)s")
        logging.getLogger("inc_torch.tuning").setLevel(logging.INFO)

    case = load(options.case, options.output, quick=options.quick)
    tuned = tune(case, options.strategy, options.trials)
    result = tuned.tuning
    if not sys.stderr.isatty():
        result.print()
    console.print("In float:", *result.fallen_back or ["nothing"], sep="\n  ", highlight=False)
    options.output.mkdir(parents=True, exist_ok=True)
    picture, history = (options.output / f"{options.case}.{ending}" for ending in ("png", "json"))
    result.plot(picture)
    result.save(history)
    console.print(f"Picture: {picture.name}, trials: {history.name}, in {options.output.name}.", highlight=False)

    default = quantization.fit(case.model, PostTrainingQuantConfig(), calib_dataloader=case.calibration)
    console.print(compare(case, {FLOAT: case.model, DEFAULT: default, TUNED: tuned}, options.case.capitalize()))


if __name__ == "__main__":
    main()
