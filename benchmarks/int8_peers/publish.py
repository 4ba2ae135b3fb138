"""Results as files: every raw time in results.json, and for each processor tables and a picture in docs/benchmarks.md.

``python -m benchmarks.int8_peers.publish`` writes page and pictures again from results.json.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.int8_peers.candidates import CANDIDATES
from benchmarks.int8_peers.machine import Machine
from benchmarks.int8_peers.models import MODELS
from benchmarks.int8_peers.picture import draw
from benchmarks.int8_peers.tables import Rows, section

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: begin (written by make bench-int8) -->", "<!-- figures: end -->"


def read() -> Rows:
    """Every row that is known: one candidate on one workload and one machine."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def store(rows: Rows, load: list[float]) -> None:
    """Put rows of this machine into results.json, each in the place of an earlier one of the same candidate."""
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"finished": finished, "load": load, "machine": Machine.of_this().facts()}
    write(merged(read(), [row | facts for row in rows]))


def write(rows: Rows) -> None:
    """Write rows into results.json, one a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    RESULTS.write_text(f"[\n{lines}\n]\n")


def merged(kept: Rows, new: Rows) -> Rows:
    """Replace rows by those of the same machine, workload and candidate, and sort all."""
    return sorted(({key(row): row for row in [*kept, *new]}).values(), key=key)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Identify a row, in the order of the file."""
    models, candidates = list(MODELS), list(CANDIDATES)
    workload = (row["threads"], models.index(row["model"]), row["batch"])
    return Machine.of(row).slug, *workload, candidates.index(row["candidate"])


def by_machine(rows: Rows) -> dict[Machine, Rows]:
    """Group rows, what was measured last first."""
    groups: dict[Machine, Rows] = {}
    for row in sorted(rows, key=lambda row: row["finished"], reverse=True):
        groups.setdefault(Machine.of(row), []).append(row)
    return {machine: sorted(own, key=key) for machine, own in groups.items()}


def write_page() -> None:
    """Write sections and pictures from results.json, and remove the pictures of other machines."""
    groups = by_machine(read())
    pictures = {machine: PAGE.with_name(f"int8_peers-{machine.slug}.svg") for machine in groups}
    for machine, rows in groups.items():
        draw(rows, pictures[machine])
    for old in set(PAGE.parent.glob("int8_peers*.svg")) - set(pictures.values()):
        old.unlink()
    sections = "\n\n".join(section(machine, rows, pictures[machine].name) for machine, rows in groups.items())
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{sections}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    write_page()
