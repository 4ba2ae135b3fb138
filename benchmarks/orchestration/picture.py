"""Accuracy against the size of the compressed file, a panel for each task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.orchestration.arms import GREATER, LESSER, LONG
from benchmarks.orchestration.rows import Row
from benchmarks.orchestration.tables import PLACES

# Readable on white and on dark: text in a middle grey.
TEXT = "#7d8590"
COLOURS = {0.0: "#5b8db8", LESSER: "#e8710a", GREATER: "#a34ad1"}
MARKERS = {1: "o", 2: "s", 4: "D"}
NAMED = {
    **{text: text.replace(">", "→") for text in ("dense", "prune", "dense > ptq", "prune > ptq")},
    "kd+prune > kd+lock+qat": "once for all",
    LONG: "once for all, x2",
}
APART = 1.2  # sizes nearer than this share a tick


def draw(rows: Mapping[str, Sequence[Row]], file: Path) -> None:
    """Draw all arms; error bars are the standard deviation from seed to seed."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "orchestration", "text.color": TEXT, "axes.labelcolor": TEXT}
    )
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    figure, panels = plt.subplots(1, len(rows), figsize=(11, 4.8), squeeze=False)
    for panel, (task, own) in zip(panels.flat, rows.items(), strict=True):
        draw_panel(panel, task, own)
    marks = [Line2D([], [], **look(sparsity, 1, is_int8=True), label=name) for sparsity, name in PLACES.items()]
    marks += [Line2D([], [], **look(0.0, 1, is_int8=False), label="float")]
    marks += [
        Line2D([], [], **look(0.0, phases, is_int8=True), label=f"{phases} phases of training")
        for phases in sorted({row.arm.phases for own in rows.values() for row in own} - {1})
    ]
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(handles=marks, loc="lower center", ncols=len(marks), frameon=False)
    # Without a date, so that the same results give the same file.
    figure.savefig(file, transparent=True, metadata={"Date": None})
    plt.close(figure)


def draw_panel(panel: Any, task: str, rows: Sequence[Row]) -> None:
    """One task: a mark for each arm, filled for int8; its colour says the sparsity and its shape the phases."""
    panel.set_title(task, fontsize=9.5, loc="left", color=TEXT)
    panel.set_xscale("log")
    for row in rows:
        size, colour = row.megabytes[1], COLOURS[row.arm.sparsity]
        mark = look(row.arm.sparsity, row.arm.phases, is_int8=row.arm.is_int8)
        panel.errorbar(
            size, row.accuracy, yerr=None if math.isnan(row.deviation) else row.deviation, ecolor=f"{colour}55", **mark
        )
        if row.arm.text in NAMED:
            panel.annotate(
                NAMED[row.arm.text], (size, row.accuracy), xytext=(6, 4), textcoords="offset points", fontsize=7
            )
    ticks = apart(row.megabytes[1] for row in rows)
    panel.set_xticks(ticks, [f"{size:.2g}" for size in ticks])
    panel.margins(x=0.12)
    panel.minorticks_off()
    panel.set_xlabel("MB of the weights' file after zlib")
    panel.set_ylabel("accuracy, %")
    panel.tick_params(colors=TEXT, length=2)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(TEXT)


def look(sparsity: float, phases: int, *, is_int8: bool) -> dict[str, Any]:
    """How a mark looks."""
    colour = COLOURS[sparsity]
    filling = colour if is_int8 else "none"
    return {
        "color": colour,
        "marker": MARKERS[phases],
        "markerfacecolor": filling,
        "markersize": 6,
        "linestyle": "none",
    }


def apart(sizes: Iterable[float]) -> list[float]:
    """The sizes, from the least on, without those that would be printed over one another.

    Example:
        >>> apart([2.0, 1.0, 1.1, 4.0])
        [1.0, 2.0, 4.0]
    """
    kept: list[float] = []
    for size in sorted(sizes):
        if not kept or size > APART * kept[-1]:
            kept.append(size)
    return kept
