"""How a plan is shown: a table with a bar for each phase, as text and for rich."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Group

    from inc_torch.core.hooks import Phase
    from inc_torch.core.plan import Plan

__all__ = ["as_rich", "as_text"]

WIDTH: Final = 80
_HEADER: Final = ("technique", "phase", "steps")
_MOST_WORDS: Final = 30
"""Characters that the name of a phase may take; a longer one is cut."""
_LEAST_BAR: Final = 12
_GAP: Final = "  "
_BEYOND: Final = 1.25
"""How far the axis reaches behind the last number that is known, where the length of the training is not."""
_COLOURS: Final = {"distillation": "green", "pruning": "yellow", "quantization": "cyan"}


def as_text(plan: Plan) -> str:
    """Return the table in plain characters, with notes below it."""
    cells = _cells(plan)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = _room(plan, widths, WIDTH)
    bars = ["", *(_bar(plan, phase, room, "#") for phase in plan.phases)]
    axis = _axis(plan, room)
    lines = [
        _GAP.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), bar]).rstrip()
        for row, bar in zip(cells, [axis, *bars[1:]], strict=True)
    ]
    lines.insert(1, _GAP.join("-" * width for width in [*widths, *([room] if room else [])]))
    notes = [textwrap.fill(f"! {note}", WIDTH, subsequent_indent="  ") for note in plan.notes]
    return "\n".join([*lines, *notes])


def as_rich(plan: Plan, width: int, *, is_plain: bool) -> Group:
    """Return the table in the colours of the techniques, as wide as ``width``, with notes below it."""
    # On first use: `import inc_torch` must not load rich.
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    cells = _cells(plan)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = _room(plan, widths, min(width, WIDTH))
    grid = Table(title="Plan of the training", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in _HEADER:
        grid.add_column(name, no_wrap=True)
    if room:
        grid.add_column(Text(_axis(plan, room), style="dim"), no_wrap=True)
    for phase, row in zip(plan.phases, cells[1:], strict=True):
        colour = _COLOURS.get(phase.technique, "magenta")
        bar = [Text(_bar(plan, phase, room, "#" if is_plain else "━"), style=colour)] if room else []
        grid.add_row(Text(row[0], style=colour), *map(Text, row[1:]), *bar)
    notes = Table.grid(padding=(0, 1, 0, 0))
    for note in plan.notes:
        notes.add_row(Text("!", style="bold red"), Text(note))
    return Group(grid, *([notes] if plan.notes else []))


def _cells(plan: Plan) -> list[tuple[str, str, str]]:
    """The header and a row for each phase."""
    rows = [(phase.technique, _cut(phase.what), phase.steps) for phase in plan.phases]
    return [(_HEADER[0], _HEADER[1], _HEADER[2]), *rows]


def _cut(words: str) -> str:
    return words if len(words) <= _MOST_WORDS else f"{words[: _MOST_WORDS - 3]}..."


def _horizon(plan: Plan) -> int:
    """The step at the right end of the axis; 0 if no number is known."""
    if plan.steps is not None:
        return plan.steps
    known = max((phase.begin if phase.end is None else phase.end for phase in plan.phases), default=0)
    return math.ceil(known * _BEYOND)


def _room(plan: Plan, widths: list[int], width: int) -> int:
    """Characters for the bars; 0 if there is nothing to show or no room for it."""
    room = width - sum(widths) - len(_GAP) * len(widths)
    return room if _horizon(plan) and plan.phases and room >= _LEAST_BAR else 0


def _axis(plan: Plan, room: int) -> str:
    if not room:
        return ""
    last = f"{_horizon(plan)}" if plan.steps is not None else f"{_horizon(plan)} ..."
    return f"0{last.rjust(room - 1)}"


def _bar(plan: Plan, phase: Phase, room: int, mark: str) -> str:
    horizon = _horizon(plan)
    if not room or phase.begin >= horizon:
        return ""
    first = phase.begin * room // horizon
    last = room if phase.end is None else min(room, math.ceil((phase.end + 1) * room / horizon))
    return " " * first + mark * max(1, last - first)
