"""Tables of accuracies, and what they say of snip_momentum beside magnitude."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.pruning_accuracy.records import BASELINE, CRITERIA, DENSE
from benchmarks.tasks.difference import Difference, spread_of
from benchmarks.tasks.records import Record

FIRST, SECOND = "snip_momentum", "magnitude"
OTHER_ZEROS = 0.005  # zeros that differ from what was asked by more than this are worth a line

Row = tuple[str, str, float]  # task, pattern, sparsity
Cells = Mapping[str, Sequence[Record]]  # by criterion, one for each seed


def show(records: Iterable[Record], guesses: Mapping[str, float], console: Console) -> None:
    """Print the accuracies, the differences and what follows; what is not there yet is left out.

    Args:
        records: Of any trainings, the dense ones of each task among them.
        guesses: For each task, the accuracy of always giving the same answer.
        console: Where to.
    """
    plain: dict[tuple[str, str], list[Record]] = defaultdict(list)
    rows: dict[Row, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        run = record.run
        if run.pattern:
            rows[run.task, run.pattern, run.sparsity][run.criterion].append(record)
        else:
            plain[run.task, run.criterion].append(record)
    console.print(accuracies(rows, plain))
    for task in dict.fromkeys(task for task, _, _ in rows):
        console.print(about(plain[task, BASELINE], plain[task, DENSE], guesses[task]))
    found = differences(rows)
    if found:
        console.print(*comparison(found), sep="\n")


def accuracies(rows: Mapping[Row, Cells], plain: Mapping[tuple[str, str], Sequence[Record]]) -> Table:
    """Mean and range over the seeds for each model and pattern."""
    criteria = [name for name in CRITERIA if any(name in cells for cells in rows.values())]
    table = Table(
        title="Accuracy in %: mean, least and greatest over the seeds",
        caption="Dense: trained on as long. A last line gives the share of zeros where it is not the sparsity.",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    add_columns(table, DENSE, *criteria)
    for task in dict.fromkeys(task for task, _, _ in rows):
        table.add_section()
        for row, cells in rows.items():
            if row[0] == task:
                pruned = (cell(cells.get(name, ()), row[2]) for name in criteria)
                table.add_row(*words_of(row), cell(plain.get((task, DENSE), ())), *pruned)
    return table


def add_columns(table: Table, *names: str) -> None:
    """Columns that say what is compared, and columns of figures."""
    for name in ("model", "pattern", "sparsity", *names):
        table.add_column(name, justify="left" if name in {"model", "pattern"} else "right", no_wrap=True)


def words_of(row: Row) -> tuple[str, str, str]:
    """The model without its data, the pattern and the sparsity."""
    task, pattern, sparsity = row
    return task.partition(",")[0], pattern, f"{sparsity:.0%}"


def cell(records: Sequence[Record], sparsity: float = 0.0) -> str:
    """Mean and range, and zeros that are not as asked for."""
    if not records:
        return "-"
    values = [record.accuracy for record in records]
    lines = [f"{np.mean(values):.2f}"]
    if len(values) > 1:
        lines.append(f"{min(values):.1f}..{max(values):.1f}")
    zeros = float(np.mean([record.zeros for record in records]))
    if abs(zeros - sparsity) > OTHER_ZEROS:
        lines.append(f"{zeros:.0%} zeros")
    return "\n".join(lines)


def about(before: Sequence[Record], dense: Sequence[Record], guess: float) -> str:
    """How the dense models were made, and how exact an accuracy is."""
    run, items = dense[0].run, len(dense[0].right)
    first, second = (float(np.mean([record.accuracy for record in records])) for records in (before, dense))
    error = math.sqrt(second * (100 - second) / items)
    return (
        f"{run.task}: the first phase reaches {first:.2f}, the second one without pruning {second:.2f} ({run.phases} "
        f"steps and learning rates, seeds: {len(dense)}), always the same answer {guess:.2f}. {items:,} test items "
        f"leave a standard error of {error:.2f} points in the accuracy of a dense model."
    )


def differences(rows: Mapping[Row, Cells]) -> list[Difference]:
    """snip_momentum beside magnitude, for the seeds that both have."""
    found = []
    for row, cells in rows.items():
        first, second = ({record.run.seed: record for record in cells.get(name, ())} for name in (FIRST, SECOND))
        seeds = sorted(first.keys() & second.keys())
        if seeds:
            found.append(Difference.of(row, [first[seed] for seed in seeds], [second[seed] for seed in seeds]))
    return found


def comparison(found: Sequence[Difference]) -> tuple[Table, str]:
    """A table of the differences, and in words where they are more than twice their standard error."""
    table = Table(
        title=f"{FIRST} minus {SECOND}, in points",
        caption="Standard error of the mean: from the spread between seeds, one for all patterns of a model, and from "
        "the size of the test set.",
        box=SIMPLE_HEAD,
    )
    add_columns(table, "each seed", "mean", "standard error")
    places: dict[str, list[str]] = {FIRST: [], SECOND: [], "neither": []}
    for each in found:
        error = each.error(spread_of([other for other in found if other.row[0] == each.row[0]]))
        difference = f"{each.mean:+.2f}", f"{error:.2f}"
        table.add_row(*words_of(each.row), "  ".join(f"{value:+.2f}" for value in each.seeds), *difference)
        winner = "neither" if abs(each.mean) <= 2 * error else FIRST if each.mean > 0 else SECOND
        places[winner].append(f"{' '.join(words_of(each.row))} ({' ± '.join(difference)})")
    if all(len(each.seeds) == 1 for each in found):
        return table, "One seed does not tell how much seeds differ, so nothing follows."
    sentences = {
        f"{FIRST} beats {SECOND} by more than twice the standard error": places[FIRST],
        f"{SECOND} beats {FIRST} by more than that": places[SECOND],
        "Within the noise": places["neither"],
    }
    return table, "\n".join(f"{start}: {', '.join(where) or 'nowhere'}." for start, where in sentences.items())
