"""The picture of one processor: a panel of bars for each workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.int8_peers.candidates import BASE, CANDIDATES
from benchmarks.int8_peers.report import heading
from benchmarks.int8_peers.tables import Rows, by_candidate, grouped, short_of

# Readable on white and on dark: text in a middle grey, one colour for this package, two greys for the others.
TEXT, OURS, INT8, FLOAT = "#7d8590", "#e8710a", "#5b8db8", "#a9b1ba"
COLUMNS_OF_PANELS = 2


def colour(name: str) -> str:
    if name.startswith("inc_torch"):
        return OURS
    return INT8 if CANDIDATES[name].title.startswith("int8") else FLOAT


def draw(rows: Rows, path: Path) -> None:
    """Draw the workloads on one thread, or all where there is none: median speed-up, quartiles as error bars."""
    import matplotlib  # only the peers' environment has it

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 9, "svg.hashsalt": "int8", "text.color": TEXT, "axes.labelcolor": TEXT})
    from matplotlib import pyplot as plt

    shown = grouped([row for row in rows if row["threads"] == 1] or rows, workload_of)
    lines = -(-len(shown) // COLUMNS_OF_PANELS)
    figure, grid = plt.subplots(
        lines, COLUMNS_OF_PANELS, figsize=(11, 2.6 * lines), sharex=True, sharey=True, squeeze=False
    )
    for panel, own in zip(grid.flat, shown, strict=False):
        draw_panel(panel, own, [name for name in CANDIDATES if name != BASE])
    for panel in grid.flat[len(shown) :]:
        panel.set_visible(False)
    grid[0, 0].margins(x=0.1)
    label_lowest(grid)
    figure.tight_layout()
    # Without a date, so that the same results give the same file.
    figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)


def workload_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["threads"], row["model"], row["batch"]


def label_lowest(grid: Any) -> None:
    for column in range(COLUMNS_OF_PANELS):
        lowest = [panel for panel in grid[:, column] if panel.get_visible()][-1:]
        for panel in lowest:
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("speed-up over float32 eager")


def draw_panel(panel: Any, rows: Rows, names: list[str]) -> None:
    panel.set_title(heading(rows[0]), fontsize=9.5, loc="left", color=TEXT)
    known = by_candidate(rows)
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
