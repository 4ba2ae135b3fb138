"""The tables of the study, for a terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.orchestration.arms import DENSE, GREATER, LESSER
from benchmarks.orchestration.rows import Row
from benchmarks.orchestration.speed import FLOAT, KINDS, ROWS, Times

COLUMNS = ("arm", "phases", "%", "SD", "- dense", "in %", "teacher", "zeros", "MB", "zip")
PLACES = {0.0: "not pruned", LESSER: f"4x1, {LESSER:.0%}", GREATER: f"4x1, {GREATER:.0%}"}


@dataclass(frozen=True)
class Sheet:
    """Cells under a title, in groups."""

    title: str
    columns: tuple[str, ...]
    groups: Mapping[str, Sequence[tuple[str, ...]]]

    def as_rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="right" if place else "left", no_wrap=True)
        for group, lines in self.groups.items():
            if group:
                table.add_section()
                table.add_row(f"[bold]{group}[/bold]")
            for line in lines:
                table.add_row(*line)
        return table

    def as_markdown(self) -> str:
        """For a page; a group is a line of its own in bold."""
        lines = [self.columns, ("---", *["--:"] * (len(self.columns) - 1))]
        for group, members in self.groups.items():
            if group:
                lines.append((f"**{group}**", *[""] * (len(self.columns) - 1)))
            lines += members
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracies(task: str, rows: Iterable[Row]) -> Sheet:
    """What each arm reaches, loses and weighs."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault(PLACES[row.arm.sparsity], []).append(cells(row))
    return Sheet(task, COLUMNS, groups)


def cells(row: Row) -> tuple[str, ...]:
    """One line; a dense model is not compared with itself."""
    is_measure = row.arm.text in DENSE.values()
    size, packed = (f"{value:.2g}" if value < 1 else f"{value:.1f}" for value in row.megabytes)
    return (
        row.arm.text.replace(">", "→"),
        str(row.arm.phases),
        f"{row.accuracy:.2f}",
        "-" if math.isnan(row.deviation) else f"{row.deviation:.2f}",
        "-" if is_measure else f"{row.loss.mean:+.2f} ±{row.error:.2f}",
        "-" if is_measure else f"{100 * row.relative:+.1f}",
        "-" if row.beside_teacher is None else f"{100 * row.beside_teacher:+.1f}",
        f"{row.zeros:.0%}",
        size,
        packed,
    )


def speeds(machine: str, measured: Mapping[str, Times]) -> Sheet:
    """How long inference takes, and how many times as fast as float it is."""
    rows_each = [f"{rows} row{'s' * (rows > 1)}" for rows in ROWS]
    columns = ("kind", *(f"ms, {rows}" for rows in rows_each), *(f"speed, {rows}" for rows in rows_each))
    groups = {}
    for task, times in measured.items():
        groups[task] = [
            (
                name,
                *(f"{times[str(rows)][name]:.3g}" for rows in ROWS),
                *(f"{times[str(rows)][FLOAT] / times[str(rows)][name]:.2f}" for rows in ROWS),
            )
            for name in KINDS
        ]
    return Sheet(f"Inference, one thread of {machine}", columns, groups)
