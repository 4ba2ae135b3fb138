"""What combinations of techniques cost: MiniLM-L6 on Rotten Tomatoes and a small CNN on Fashion-MNIST.

A dense baseline is trained once for each seed. From it every arm goes on: each technique alone, several in one
training (one shot), trainings one after the other (several shots). Every shot is one phase of training with the same
steps and data; arms of two phases are compared with a dense model that was trained for two. The teacher
is the dense model after one phase. Every finished arm is a line in OUTPUT/results.jsonl, and an arm that is found there
is not made again: what was stopped goes on. One thread; about two hours in all. The time that inference takes is measured
last, and kept in OUTPUT/speed.json.

    python benchmarks/orchestration/run.py [--quick] [--show]
    python benchmarks/orchestration/run.py --show --publish docs

MiniLM and the reviews come with `make env`, the images with `make fashion`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # where the packages `benchmarks`
sys.path.insert(0, str(HERE.parents[1] / "examples"))  # and `common` lie
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402

from benchmarks.orchestration.arms import arms  # noqa: E402
from benchmarks.orchestration.records import Outcome  # noqa: E402
from benchmarks.orchestration.study import Study  # noqa: E402
from benchmarks.tasks.command import begin, parser  # noqa: E402
from benchmarks.tasks.records import Records  # noqa: E402


def main() -> None:
    options = parser(__doc__ or "", HERE / "output").parse_args()
    console = Console()
    tasks, seeds = begin(options)
    studies = [Study(task, seed, options.output) for seed in seeds for task in tasks]
    records = Records(options.output / "results.jsonl", Outcome)
    asked = [(study, arm) for study in studies for arm in arms()]
    if not options.show:
        missing = [(study, arm) for study, arm in asked if study.run_of(arm) not in records]
        for study, arm in track(missing, "arms", console=console, disable=not console.is_terminal):
            study.perform(arm, records)


if __name__ == "__main__":
    main()
