"""How the result of a pipeline is shown: a row for each stage."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Group

    from inc_torch.pipeline._result import PipelineResult, StageResult

__all__ = ["as_rich", "as_text"]

_WIDTH: Final = 80
_HEADER: Final = ("stage", "steps", "time", "zeros", "int8", "size")
_NUMBERS: Final = _HEADER[1:]
_MINUTE: Final = 60
_HOUR: Final = 3600
_MEGABYTE: Final = 1_000_000
_CODE_BITS: Final = 8
_MOST_NAME: Final = 30


def as_text(result: PipelineResult) -> str:
    """Return an aligned table, with a line for each stage that locked zeros below it."""
    rows = [_HEADER, *map(_cells, result.stages)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(paired))
        for paired in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *(textwrap.fill(note, _WIDTH, subsequent_indent="  ") for note in _notes(result))])


def as_rich(result: PipelineResult) -> Group:
    """Return the table with its notes."""
    # On first use, as in every view.
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(title="Pipeline", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    grid.add_column("stage", style="bold", overflow="fold")
    for name in _NUMBERS:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in map(_cells, result.stages):
        grid.add_row(*map(Text, row))
    return Group(grid, *(Text(note, style="dim") for note in _notes(result)))


def _cells(stage: StageResult) -> tuple[str, ...]:
    report = stage.report
    rows = [row for row in report.modules if "Embedding" not in row.kind]
    low = sum(row.bits <= _CODE_BITS for row in rows)
    name = stage.name if len(stage.name) <= _MOST_NAME else f"{stage.name[: _MOST_NAME - 3]}..."
    time = "loaded" if stage.is_loaded else _time(stage.seconds)
    zeros = f"{report.sparsity:.1%}" if any(row.asked_sparsity is not None for row in report.modules) else "-"
    int8 = f"{low}/{len(rows)}" if low else "-"
    return name, str(stage.steps or "-"), time, zeros, int8, _size(report.size_bytes)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= _MEGABYTE else f"{count / 1e3:.1f} kB"


def _time(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.1f} min"
    return f"{seconds / _HOUR:.1f} h"


def _notes(result: PipelineResult) -> list[str]:
    return [
        f"{stage.name}: zeros of {len(stage.locked)} layer{'s' * (len(stage.locked) > 1)} locked, as an earlier stage "
        "pruned them"
        for stage in result.stages
        if stage.locked
    ]
