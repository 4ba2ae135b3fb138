"""Accuracy against the size of the compressed file, a panel for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.orchestration.arms import GREATER, LESSER
from benchmarks.orchestration.rows import Row

# Readable on white and on dark: text in a middle grey.
TEXT = "#7d8590"
COLOURS = {0.0: "#5b8db8", LESSER: "#e8710a", GREATER: "#a34ad1"}
MARKERS = {1: "o", 2: "s"}
NAMED = {
    "dense",
    "prune",
    "dense > ptq",
    "prune > ptq",
    "kd+prune+qat",
    "kd+prune+qat x2",
    "kd+prune > kd+lock+qat",
}


def draw(rows: Mapping[str, Sequence[Row]], file: Path) -> None:
    """Draw all arms; error bars are the standard deviation from seed to seed."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "orchestration", "text.color": TEXT, "axes.labelcolor": TEXT}
    )
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(rows), figsize=(11, 4.6), squeeze=False)
    for panel, (task, own) in zip(panels.flat, rows.items(), strict=True):
        draw_panel(panel, task, own)
    figure.tight_layout()
    # Without a date, so that the same results give the same file.
    figure.savefig(file, transparent=True, metadata={"Date": None})
    plt.close(figure)


def draw_panel(panel: Any, task: str, rows: Sequence[Row]) -> None:
    """One task: a mark for each arm, filled for int8; its colour says the sparsity and its shape the phases."""
    panel.set_title(task, fontsize=9.5, loc="left", color=TEXT)
    panel.set_xscale("log")
    for row in rows:
        colour, size = COLOURS[row.arm.sparsity], row.megabytes[1]
        panel.errorbar(
            size,
            row.accuracy,
            yerr=row.deviation,
            color=colour,
            ecolor=f"{colour}55",
            marker=MARKERS[row.arm.phases],
            markerfacecolor=colour if row.arm.is_int8 else "none",
            markersize=6,
        )
        if row.arm.text in NAMED:
            label = row.arm.text.replace(">", "→")
            panel.annotate(label, (size, row.accuracy), xytext=(6, 4), textcoords="offset points", fontsize=7)
    sizes = sorted({float(f"{row.megabytes[1]:.2g}") for row in rows})
    panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
    panel.minorticks_off()
    panel.set_xlabel("MB of the weights' file after zlib")
    panel.set_ylabel("accuracy, %")
    panel.tick_params(colors=TEXT, length=2)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(TEXT)
