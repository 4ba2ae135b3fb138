"""Results as files: every raw time in results.json, tables and a picture in docs/benchmarks.md.

``python -m benchmarks.int8_peers.publish`` writes page and picture again from results.json.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.int8_peers.candidates import BASE, CANDIDATES
from benchmarks.int8_peers.report import COLUMNS, cells, failure, heading

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[1] / "docs" / "benchmarks.md"
PICTURE = PAGE.with_name("int8_peers.svg")
BEGIN, END = "<!-- figures: begin (written by make bench-int8) -->", "<!-- figures: end -->"

# Readable on white and on dark: text in a middle grey, one colour for this package, two greys for the others.
TEXT, OURS, INT8, FLOAT = "#7d8590", "#e8710a", "#5b8db8", "#a9b1ba"
COLUMNS_OF_PANELS = 2


def machine() -> dict[str, Any]:
    """Describe the machine: processor, instruction sets that matter for int8, number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
    present = [name for name in wanted if name in known.get("flags", "").split()]
    return {
        "processor": known.get("model name", platform.processor()),
        "family": known.get("cpu family"),
        "instructions": present,
        "cores": os.cpu_count(),
    }


def store(rows: list[dict[str, Any]], load_before: float) -> None:
    """Put one workload into results.json, in the place of an earlier run of it."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    key = [rows[0][name] for name in ("model", "batch", "threads")]
    entry = {
        "workload": key,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": [load_before, os.getloadavg()[0]],
        "machine": machine(),
        "rows": rows,
    }
    entries = [old for old in kept if old["workload"] != key] + [entry]
    entries.sort(key=lambda each: each["workload"][2])
    RESULTS.write_text(json.dumps(entries, indent=1) + "\n")


def write_page() -> None:
    """Write tables and picture from results.json."""
    entries = json.loads(RESULTS.read_text())
    draw(entries, PICTURE)
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{figures(entries)}\n\n{END}{tail}", encoding="utf-8")


def figures(entries: list[dict[str, Any]]) -> str:
    """Everything between the markers of the page."""
    tables = [detail(entry["rows"]) for entry in entries]
    return "\n\n".join([conditions(entries), f"![Speed-up over float32]({PICTURE.name})", overview(entries), *tables])


def conditions(entries: list[dict[str, Any]]) -> str:
    """Say where, when and with what the figures were measured."""
    machines = [entry["machine"] for entry in entries]
    rooms = sorted({f"{each['processor']}, family {each['family']}, {each['cores']} cores" for each in machines})
    instructions = ", ".join(entries[0]["machine"]["instructions"])
    days = sorted({entry["finished"][:10] for entry in entries})
    versions: dict[str, set[str]] = {}
    for row in (row for entry in entries for row in entry["rows"] if "versions" in row):
        for name, version in row["versions"].items():
            versions.setdefault(name, set()).add(version)
    packages = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())
    loads = [load for entry in entries for load in entry["load"]]
    rounds = max(len(row["rounds"]) for entry in entries for row in entry["rows"] if "rounds" in row)
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    return (
        f"Measured on {when} on {'; '.join(rooms)} ({instructions}), {rounds} rounds; load average before and after "
        f"each workload {min(loads):.1f} to {max(loads):.1f}. {packages}."
    )


def overview(entries: list[dict[str, Any]]) -> str:
    """One table of speed-ups: a row for each candidate, a column for each workload."""
    short = [f"{e['workload'][0]} b{e['workload'][1]}{', 2 threads' * (e['workload'][2] > 1)}" for e in entries]
    lines = [f"| speed-up over float32 eager | {' | '.join(short)} |", f"|---|{'---:|' * len(short)}"]
    for name, candidate in CANDIDATES.items():
        if name == BASE:
            continue
        values = []
        for entry in entries:
            row = next((row for row in entry["rows"] if row["candidate"] == name), None)
            values.append(short_of(row))
        lines.append(f"| {candidate.title} | {' | '.join(values)} |")
    return "\n".join(lines)


def short_of(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not asked for"
    if "fails" in row:
        return "fails"
    return "not run" if "not_run" in row else f"{row['speedup'][1]:.2f}"


def detail(rows: list[dict[str, Any]]) -> str:
    """A workload's table with times, quartiles and errors, or what went wrong."""
    lines = [f"### {heading(rows[0])}", "", f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for row in rows:
        problem = failure(row)
        figures = [problem.replace("|", "\\|"), *[""] * (len(COLUMNS) - 1)] if problem else cells(row)
        lines.append(f"| {CANDIDATES[row['candidate']].title} | {' | '.join(figures)} |")
    return "\n".join(lines)


def colour(name: str) -> str:
    if name.startswith("inc_torch"):
        return OURS
    return INT8 if CANDIDATES[name].title.startswith("int8") else FLOAT


def draw(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw one panel of bars for each workload on one thread: median speed-up, with quartiles as error bars."""
    import matplotlib  # only the peers' environment has it

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 9, "svg.hashsalt": "int8", "text.color": TEXT, "axes.labelcolor": TEXT})
    from matplotlib import pyplot as plt

    shown = [entry for entry in entries if entry["workload"][2] == 1] or entries
    lines = -(-len(shown) // COLUMNS_OF_PANELS)
    names = [name for name in CANDIDATES if name != BASE]
    figure, grid = plt.subplots(
        lines, COLUMNS_OF_PANELS, figsize=(11, 2.6 * lines), sharex=True, sharey=True, squeeze=False
    )
    for panel, entry in zip(grid.flat, shown, strict=False):
        draw_panel(panel, entry["rows"], names)
    for panel in grid.flat[len(shown) :]:
        panel.set_visible(False)
    grid[0, 0].margins(x=0.1)
    for column in range(COLUMNS_OF_PANELS):
        lowest = [panel for panel in grid[:, column] if panel.get_visible()][-1:]
        for panel in lowest:
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("speed-up over float32 eager")
    figure.tight_layout()
    # Without a date, so that the same results give the same file.
    figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)


def draw_panel(panel: Any, rows: list[dict[str, Any]], names: list[str]) -> None:
    panel.set_title(heading(rows[0]), fontsize=9.5, loc="left", color=TEXT)
    known = {row["candidate"]: row for row in rows}
    for place, name in enumerate(names):
        row = known.get(name)
        if row is None or "speedup" not in row:
            panel.text(0.1, place, short_of(row), va="center", fontsize=8, style="italic", color=TEXT)
            continue
        low, middle, high = row["speedup"]
        panel.barh(place, middle, color=colour(name), height=0.72)
        panel.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color=TEXT, capsize=2, linewidth=1)
        panel.text(high + 0.12, place, f"{middle:.1f}", va="center", fontsize=8, color=TEXT)
    panel.set_yticks(range(len(names)), [CANDIDATES[name].title for name in names])
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.axvline(1, color=TEXT, linewidth=0.8, linestyle=":")
    panel.tick_params(colors=TEXT, length=2)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(TEXT)


if __name__ == "__main__":
    write_page()
