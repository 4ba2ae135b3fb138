"""How a compression report is shown: as text, as a table of rich, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group

    from inc_torch.core.report import CompressionReport, ModuleReport

__all__ = ["as_markdown", "as_rich", "as_text"]

HEADER = ("module", "shape", "asked", "zeros", "bits", "scheme")


def as_text(report: CompressionReport) -> str:
    """Return an aligned table, then a line for each note, then the totals."""
    cells = [HEADER, *map(_cells, report.modules)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *_remarks(report)])


def as_rich(report: CompressionReport) -> Group:
    """Return the table with its notes and totals, made to fit 80 columns for the usual module names."""
    # On first use: `import inc_torch` must not load rich.
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Compression report", box=None, pad_edge=False)
    for name in HEADER:
        table.add_column(name, overflow="fold")
    for row in report.modules:
        table.add_row(*map(Text, _cells(row)))
    return Group(table, *map(Text, _remarks(report)))


def as_markdown(report: CompressionReport) -> str:
    """Return a Markdown table, then notes and totals as a list."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in report.modules]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in _remarks(report))])


def _cells(row: ModuleReport) -> tuple[str, ...]:
    asked = "" if row.asked_sparsity is None else f"{100 * row.asked_sparsity:.4g}% {row.pattern}"
    return row.name or "(root)", "x".join(map(str, row.shape)), asked, f"{row.sparsity:.1%}", str(row.bits), row.scheme or ""


def _remarks(report: CompressionReport) -> list[str]:
    notes = [f"{row.name or '(root)'}: {note}" for row in report.modules for note in row.notes]
    ratios = [f"{name}: {value:.4f}" for name, value in report.ratios.items()]
    return [*notes, *ratios, f"size of all tensors: {report.size_bytes / 1e6:.2f} MB"]
