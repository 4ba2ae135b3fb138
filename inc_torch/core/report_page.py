"""A compression report as a page for a browser: totals, a bar for each module, sparsity over steps, the table.

One file without scripts and without anything to fetch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from inc_torch.core import report_view

if TYPE_CHECKING:
    from inc_torch.core.report import CompressionReport, ModuleReport

__all__ = ["as_page"]

_WIDTH, _HEIGHT, _MARGIN = 640, 220, 40
_TICKS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)


def as_page(report: CompressionReport) -> str:
    """Return the page, complete."""
    pruned = [row for row in report.modules if row.asked_sparsity is not None]
    sections = [
        f"<h1>Compression report</h1>{_totals(report)}",
        f"<h2>Zeros by module</h2>{_bars(pruned)}" if pruned else "",
        f"<h2>Sparsity over optimizer steps</h2>{_curve(report.sparsity_over_steps)}"
        if report.sparsity_over_steps
        else "",
        f"<h2>All modules</h2>{_table(report)}",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Compression report</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def _totals(report: CompressionReport) -> str:
    asked = [row for row in report.modules if row.asked_sparsity is not None]
    facts = [(f"{len(report.modules)}", "modules with weights"), (f"{report.size_bytes / 1e6:.2f} MB", "stored")]
    if asked:
        facts[1:1] = [(f"{report.sparsity:.1%}", f"zeros in {len(asked)} pruned modules")]
    if quantized := [row for row in report.modules if row.scheme and not row.awaits_conversion]:
        facts.append((f"{len(quantized)}", "quantized modules"))
    return '<ul class="totals">' + "".join(f"<li><b>{value}</b> {words}</li>" for value, words in facts) + "</ul>"


def _bars(rows: Iterable[ModuleReport]) -> str:
    """A bar for the share of zeros of each module, and a mark for what was asked of its group."""
    lines = "".join(
        f'<tr><th scope="row">{_named(row)}</th><td class="track" title="{_told(row)}">'
        f'<div class="bar" style="width:{row.sparsity:.2%}"></div>'
        f'<div class="asked" style="left:{row.asked_sparsity:.2%}"></div></td>'
        f"<td>{row.sparsity:.1%}</td></tr>"
        for row in rows
    )
    legend = (
        '<p class="legend"><span class="bar"></span> zeros <span class="asked"></span> asked, of the whole group</p>'
    )
    return f'{legend}<table class="bars">{lines}</table>'


def _told(row: ModuleReport) -> str:
    units = "" if row.units is None else f", {row.pruned_units} of {row.units} units of {row.pattern}"
    return escape(f"{row.zeros} of {row.numel} values{units}; asked {row.asked_sparsity:.4g}")


def _curve(points: Sequence[tuple[int, float]]) -> str:
    """Steps that hold until the next change."""
    last = max(1, points[-1][0])
    inner_width, inner_height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN

    def across(step: float) -> float:
        return _MARGIN + inner_width * step / last

    def down(sparsity: float) -> float:
        return _MARGIN + inner_height * (1 - sparsity)

    path = f"M{across(0):.1f},{down(0):.1f}"
    path += "".join(f"H{across(step):.1f}V{down(sparsity):.1f}" for step, sparsity in points)
    lines = "".join(
        f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        f'<text x="{_MARGIN - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>'
        for tick in _TICKS
    )
    below = _HEIGHT - _MARGIN + 18
    steps = (
        f'<text x="{_MARGIN}" y="{below}">0</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{below}" text-anchor="end">step {points[-1][0]}</text>'
    )
    label = f"Sparsity from 0 to {points[-1][1]:.1%} over {points[-1][0]} steps"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{lines}{steps}<path d="{path}"/></svg>'
    )


def _table(report: CompressionReport) -> str:
    header, *rows = report_view.table(report)
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in report_view.remarks(report))
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div><ul>{remarks}</ul>'
    )


def _named(row: ModuleReport) -> str:
    return escape(row.name or "(root)")


_STYLE: Final = """
:root { color-scheme: light dark; --bar: #2a6fb0; --asked: #c2571a; --line: #8886; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
.totals { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; list-style: none; padding: 0; }
.totals b { display: block; font-size: 1.5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); }
.bars th { font-weight: normal; width: 1%; white-space: nowrap; }
.bars td:last-child { width: 4rem; text-align: right; }
.track { position: relative; min-width: 8rem; padding: 0; }
.bar { background: var(--bar); height: .8rem; }
.track .asked { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--asked); }
.legend span { display: inline-block; width: 1.2rem; height: .8rem; margin-left: 1rem; vertical-align: -.1rem; }
.legend span.asked { width: 2px; background: var(--asked); }
.legend span:first-child { margin-left: 0; }
.wide { overflow-x: auto; }
svg { width: 100%; max-width: 40rem; }
svg line { stroke: var(--line); }
svg path { fill: none; stroke: var(--bar); stroke-width: 2; }
svg text { fill: currentColor; font-size: 11px; }
"""
