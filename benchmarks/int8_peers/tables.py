"""The section of one processor in docs/benchmarks.md: conditions, a picture, and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.int8_peers.candidates import BASE, CANDIDATES
from benchmarks.int8_peers.machine import Machine
from benchmarks.int8_peers.report import COLUMNS, cells, failure, heading

Row = dict[str, Any]
Rows = list[Row]

OURS = ("inc_torch-optimized", "inc_torch")
PEERS = tuple(name for name in CANDIDATES if name not in (*OURS, BASE))
RIVALS = ("openvino", "ipex")  # that are compared by name
NO_ROW = "not measured"


def section(machine: Machine, rows: Rows, picture: str) -> str:
    """Everything about one machine.

    Args:
        machine: Which.
        rows: Its results, in the order of the tables.
        picture: The file name of the picture.
    """
    parts = [f"#### {machine.title}, {machine.cores} cores", conditions(machine, rows)]
    parts.append(f"![Speed-up over float32]({picture})")
    for own in grouped(rows, lambda row: row["threads"]):
        loads = grouped(own, lambda row: (row["model"], row["batch"]))
        parts += [overview(loads), beside_peers(loads)]
    parts += [detail(load) for load in grouped(rows, lambda row: (row["threads"], row["model"], row["batch"]))]
    return "\n\n".join(parts)


def grouped(rows: Rows, key: Callable[[Row], Any]) -> list[Rows]:
    groups: dict[Any, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def conditions(machine: Machine, rows: Rows) -> str:
    """Say when, on what and with what the figures were measured."""
    when = " to ".join(ends(row["finished"][:10] for row in rows))
    rounds = " to ".join(ends(len(row["rounds"]) for row in rows if "rounds" in row))
    loads = [load for row in rows for load in row["load"]]
    return (
        f"Measured on {when}; {', '.join(machine.instructions)}; {rounds} rounds; load average before and after each "
        f"workload {min(loads):.1f} to {max(loads):.1f}. {packages(rows)}."
    )


def ends(values: Iterable[Any]) -> list[str]:
    """The least and the greatest value, once where they are the same."""
    ordered = sorted(values)
    return [str(value) for value in dict.fromkeys((ordered[0], ordered[-1]))]


def packages(rows: Rows) -> str:
    versions: dict[str, set[str]] = {}
    for row in (row for row in rows if "versions" in row):
        for name, version in row["versions"].items():
            versions.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())


def threads_of(rows: Rows) -> str:
    number = rows[0]["threads"]
    return f"{number} thread{'s' * (number > 1)}"


def table(title: str, loads: list[Rows], lines: Iterable[tuple[str, list[str]]]) -> str:
    """A table with a column for each workload."""
    columns = [f"{rows[0]['model']} b{rows[0]['batch']}" for rows in loads]
    head = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(values)} |" for name, values in lines)])


def overview(loads: list[Rows]) -> str:
    """The speed-up of each candidate."""
    known = [by_candidate(rows) for rows in loads]
    lines = [
        (candidate.title, [short_of(rows.get(name)) for rows in known])
        for name, candidate in CANDIDATES.items()
        if name != BASE
    ]
    return table(f"speed-up over float32 eager, {threads_of(loads[0])}", loads, lines)


def beside_peers(loads: list[Rows]) -> str:
    """How many times as fast this package is as OpenVINO, as IPEX, and as whichever peer is the fastest."""
    known = [by_candidate(rows) for rows in loads]
    lines = []
    for own in OURS:
        title = CANDIDATES[own].title.removeprefix("int8, ")
        for rival in RIVALS:
            values = [ratio(rows.get(own), rows.get(rival)) for rows in known]
            lines.append((f"{title} to {library(rival)}", values))
        lines.append((f"{title} to the fastest peer", [to_fastest(rows.get(own), rows) for rows in known]))
    return table(f"beside OpenVINO, IPEX and the fastest peer, {threads_of(loads[0])}", loads, lines)


def by_candidate(rows: Rows) -> dict[str, Row]:
    return {row["candidate"]: row for row in rows}


def library(name: str) -> str:
    return CANDIDATES[name].title.removeprefix("int8, ")


def ratio(own: Row | None, other: Row | None) -> str:
    """How many times as fast one is as the other: the ratio of their speed-ups."""
    for row in (own, other):
        if row is None or "speedup" not in row:
            return short_of(row)
    return f"{own['speedup'][1] / other['speedup'][1]:.2f}"  # type: ignore[index]


def to_fastest(own: Row | None, rows: dict[str, Row]) -> str:
    measured = [rows[name] for name in PEERS if "speedup" in rows.get(name, {})]
    if not measured:
        return NO_ROW
    fastest = max(measured, key=lambda row: row["speedup"][1])
    return f"{ratio(own, fastest)} ({library(fastest['candidate'])})"


def short_of(row: Row | None) -> str:
    if row is None:
        return NO_ROW
    if "fails" in row:
        return "fails"
    return "not run" if "not_run" in row else f"{row['speedup'][1]:.2f}"


def detail(rows: Rows) -> str:
    """A workload's table with times, quartiles and errors, or what went wrong."""
    lines = [f"##### {heading(rows[0])}", "", f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for row in rows:
        problem = failure(row)
        figures = [problem.replace("|", "\\|"), *[""] * (len(COLUMNS) - 1)] if problem else cells(row)
        lines.append(f"| {CANDIDATES[row['candidate']].title} | {' | '.join(figures)} |")
    return "\n".join(lines)
