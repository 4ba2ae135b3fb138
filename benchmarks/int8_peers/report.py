"""From raw times to a table: medians of the rounds' ratios, with quartiles."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.int8_peers.candidates import CANDIDATES
from benchmarks.int8_peers.measure import Outcome, Workload
from benchmarks.int8_peers.models import MODELS


def clock_of(load: Workload) -> str:
    """Time of the process where one thread runs, which other processes hardly disturb; else time by the clock."""
    return "cpu" if load.threads == 1 else "wall"


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def result(load: Workload, outcome: Outcome) -> dict[str, Any]:
    """All that is known of one candidate on one workload, ready for JSON."""
    row: dict[str, Any] = {
        "model": load.model,
        "batch": load.batch,
        "threads": load.threads,
        "candidate": outcome.candidate,
    }
    for key in ("fails", "not_run"):
        if key in outcome.facts:
            return row | {key: outcome.facts[key]}
    clock = clock_of(load)
    ratios = [before[clock] / own[clock] for before, own in zip(outcome.base, outcome.rows, strict=True)]
    row |= {key: outcome.facts[key] for key in ("cosine", "error", "build", "memory", "versions")}
    row["seconds"] = statistics.median(own[clock] for own in outcome.rows)
    row["speedup"] = quartiles(ratios)
    row["rounds"] = [{"base": before, "own": own} for before, own in zip(outcome.base, outcome.rows, strict=True)]
    return row


def failure(row: dict[str, Any]) -> str | None:
    if "fails" in row:
        return f"fails: {row['fails']}"
    return f"not run: {row['not_run']}" if "not_run" in row else None


def cells(row: dict[str, Any]) -> list[str]:
    """A row's figures as text: time, speed-up, quartiles, cosine, error, time to build."""
    low, middle, high = row["speedup"]
    return [
        f"{row['seconds'] * 1e3:.2f}",
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row['cosine']:.5f}",
        f"{row['error']:.4f}",
        f"{row['build']:.1f}",
    ]


WIDTH = 100  # of a table that goes into a file
COLUMNS = ("ms", "speed-up", "quartiles", "cosine", "error", "build s")


def heading(row: dict[str, Any]) -> str:
    model = MODELS[row["model"]]
    unit = "ms a token" if model.kind == "decoder" else f"batch {row['batch']}"
    return f"{model.title}, {unit}, {row['threads']} thread{'s' * (row['threads'] > 1)}"


def show(rows: list[dict[str, Any]]) -> None:
    """Print one workload's table, and below it what was not measured, and why."""
    table = Table(title=heading(rows[0]), title_justify="left")
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for row in rows:
        if failure(row) is None:
            table.add_row(CANDIDATES[row["candidate"]].title, *cells(row))
    console.print(table)
    for row in rows:
        if failure(row) is not None:
            console.print(f"{CANDIDATES[row['candidate']].title} {failure(row)}", markup=False)
