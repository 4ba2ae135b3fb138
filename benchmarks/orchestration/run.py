"""What combinations of techniques cost: MiniLM-L6 on Rotten Tomatoes and a small CNN on Fashion-MNIST.

A dense baseline is trained once for each seed. From it every arm goes on: each technique alone, several in one training
(one shot), trainings one after the other (several shots). Every shot is one phase of training with the same steps and
data (``x2``: two phases); shots that do not prune take half of the learning rate. Arms of two or four phases are
compared with a dense model that was trained for as many. The teacher is the dense model after one phase. Every finished
arm is a line in OUTPUT/results.jsonl, and an arm that is found there is not made again: what was stopped goes on. One
thread; about three hours in all. The time that inference takes is measured last, and kept in OUTPUT/speed.json.

    python benchmarks/orchestration/run.py [--quick] [--show]
    python benchmarks/orchestration/run.py --show --publish docs/orchestration_study.svg

MiniLM and the reviews come with `make env`, the images with `make fashion`.
"""

from __future__ import annotations

import json
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

from benchmarks.orchestration.arms import arms, long_arms, short_arms  # noqa: E402
from benchmarks.orchestration.picture import draw  # noqa: E402
from benchmarks.orchestration.records import Outcome  # noqa: E402
from benchmarks.orchestration.rows import rows_of  # noqa: E402
from benchmarks.orchestration.speed import remeasured  # noqa: E402
from benchmarks.orchestration.study import Study  # noqa: E402
from benchmarks.orchestration.tables import accuracies, speeds  # noqa: E402
from benchmarks.tasks.command import begin, parser  # noqa: E402
from benchmarks.tasks.records import Records  # noqa: E402

ROUNDS, QUICK_ROUNDS = 100, 5


def main() -> None:
    asked = parser(__doc__ or "", HERE / "output")
    asked.add_argument("--publish", type=Path, metavar="FILE", help="draw a picture, and print tables as Markdown")
    options = asked.parse_args()
    console = Console()
    tasks, seeds = begin(options)
    records = Records(options.output / "results.jsonl", Outcome)
    studies = [Study(task, seed, options.output) for seed in seeds for task in tasks]
    asked_for = [(study, arm) for group in (short_arms(), long_arms()) for study in studies for arm in group]
    times = options.output / "speed.json"
    if not options.show:
        missing = [(study, arm) for study, arm in asked_for if study.run_of(arm) not in records]
        for study, arm in track(missing, "arms", console=console, disable=not console.is_terminal):
            study.perform(arm, records)
        for study in studies[: len(tasks)]:
            remeasured(study, times, QUICK_ROUNDS if options.quick else ROUNDS)

    runs = [study.run_of(arm) for study, arm in asked_for]
    rows = rows_of([records[run] for run in runs if run in records], arms())
    sheets = [accuracies(task, own) for task, own in rows.items()]
    if times.exists():
        known = json.loads(times.read_text())
        sheets.append(speeds(known["machine"], known["tasks"]))
    for sheet in sheets:
        if options.publish:
            print(f"\n{sheet.title}\n\n{sheet.as_markdown()}")
        else:
            console.print(sheet.as_rich())
    if options.publish:
        draw(rows, options.publish)


if __name__ == "__main__":
    main()
