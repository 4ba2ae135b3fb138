"""How a compression report is shown: as text, as a table of rich, as Markdown."""

from __future__ import annotations

from collections import Counter
from itertools import compress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

    from inc_torch.core.report import CompressionReport, ModuleReport

__all__ = ["as_markdown", "as_rich", "as_text", "remarks", "table"]

HEADER = ("module", "shape", "asked", "zeros", "bits", "scheme")
_ALWAYS = ("module", "shape", "zeros", "bits")


def as_text(report: CompressionReport) -> str:
    """Return an aligned table, then a line for each note, then the totals."""
    cells = table(report)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *remarks(report)])


def as_rich(report: CompressionReport) -> Group:
    """Return the table with its notes and totals, made to fit 80 columns for the usual module names."""
    # On first use: `import inc_torch` must not load rich.
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(title="Compression report", box=None, pad_edge=False, collapse_padding=True)
    header, *rows = table(report)
    for name in header:
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    return Group(grid, *map(Text, remarks(report)))


def as_markdown(report: CompressionReport) -> str:
    """Return a Markdown table, then notes and totals as a list."""
    header, *rows = table(report)
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks(report))])


def table(report: CompressionReport) -> list[tuple[str, ...]]:
    """The header and a row for each module, without columns that would be empty."""
    rows = list(map(_cells, report.modules))
    kept = [not rows or name in _ALWAYS or any(row[place] for row in rows) for place, name in enumerate(HEADER)]
    return [tuple(compress(row, kept)) for row in (HEADER, *rows)]


def _cells(row: ModuleReport) -> tuple[str, ...]:
    asked = "" if row.asked_sparsity is None else f"{100 * row.asked_sparsity:.4g}% {row.pattern}"
    shape = "x".join(map(str, row.shape))
    scheme = f"{row.scheme} (not yet)" if row.awaits_conversion else row.scheme or ""
    return row.name or "(root)", shape, asked, f"{row.sparsity:.1%}", str(row.bits), scheme


def remarks(report: CompressionReport) -> list[str]:
    """Notes, ratios and the size, a line each."""
    notes = [f"{row.name or '(root)'}: {note}" for row in report.modules for note in row.notes]
    return [*notes, *_pruned(report), f"size of all tensors: {report.size_bytes / 1e6:.2f} MB"]


def _pruned(report: CompressionReport) -> list[str]:
    """Totals of zeros, nothing if nobody pruned: at 2 bits a third of the weights rounds to zero."""
    rows = [row for row in report.modules if row.asked_sparsity is not None]
    if not rows:
        return []
    lines = [f"zeros in the pruned modules: {report.sparsity:.1%} of {sum(row.numel for row in rows)} weights"]
    lines += [
        f"asked of {count} modules together: {100 * sparsity:.4g}% {pattern}"
        for (_, pattern, sparsity), count in Counter(map(_asked, rows)).items()
        if count > 1
    ]
    return lines + [f"{name}: {value:.4f}" for name, value in report.ratios.items()]


def _asked(row: ModuleReport) -> tuple[int | None, str | None, float]:
    """Equal for the modules of one pruner, unless it locks the zeros that each of them had."""
    return row.group, row.pattern, row.asked_sparsity or 0.0
