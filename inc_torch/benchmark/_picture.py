"""The result of a benchmark as one picture: times of batches, and bars for what they come to.

SVG, written here, without scripts and without anything to fetch.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import floor, log10
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from inc_torch.benchmark._result import BenchmarkResult

__all__ = ["as_svg"]

# Colours that people tell apart who do not see all of them: Okabe and Ito, Color Universal Design, 2008.
_COLOURS: Final = ("#0072B2", "#D55E00")
_INK: Final = "#333333"
_LINE: Final = "#dddddd"

_WIDTH, _HEIGHT = 760, 320
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 64, 380, 268
"""The panel of times."""
_BARS, _BAR_WIDTH, _BAR = 430, 200, 16
"""Left of the bars, their greatest length, and their height."""
_TICKS: Final = 4
_MARKS: Final = (50, 90)
_SHOWN: Final = 95
"""Times above this percentile are not drawn: one slow batch would flatten the rest."""
_NAME: Final = 34


def as_svg(result: BenchmarkResult) -> str:
    """Return the picture, complete."""
    label = "; ".join(
        f"{model.name}: {model.percentile(50):.3g} ms a batch, {model.throughput:.4g} samples a second"
        for model in result.models
    )
    body = "\n".join([*_legend(result), *_times(result), *_all_bars(result)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">\n'
        f'<title>{escape(label)}</title>\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, words: str, *, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def _legend(result: BenchmarkResult) -> Iterator[str]:
    x = float(_LEFT)
    for model, colour in zip(result.models, _COLOURS, strict=False):
        name = model.name if len(model.name) <= _NAME else f"{model.name[: _NAME - 3]}..."
        yield f'<rect x="{x:.1f}" y="14" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 18, 24, name, more=' font-weight="bold"')
        x += 40 + 7.5 * len(name)


def _times(result: BenchmarkResult) -> Iterator[str]:
    """Milliseconds of a batch over the share of batches that took no longer."""
    greatest = max(model.percentile(_SHOWN) for model in result.models)
    step = _step(greatest / _TICKS)
    top = step * (floor(greatest / step) + 1)

    def across(share: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * share / _SHOWN

    def down(milliseconds: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * milliseconds / top

    yield _text(_LEFT, _TOP - 16, "ms a batch, by percentile")
    for tick in np.arange(0, top + step / 2, step):
        yield f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}" stroke="{_LINE}"/>'
        yield _text(_LEFT - 6, down(tick) + 4, f"{tick:.4g}", anchor="end")
    for share in (0, *_MARKS):
        yield f'<line x1="{across(share):.1f}" x2="{across(share):.1f}" y1="{_TOP}" y2="{_BOTTOM}" stroke="{_LINE}"/>'
        yield _text(across(share), _BOTTOM + 16, f"p{share}" if share else "fastest", anchor="middle")
    shares = np.linspace(0, _SHOWN, _SHOWN + 1)
    for model, colour in zip(result.models, _COLOURS, strict=False):
        values = 1000 * np.percentile(model.seconds, shares)
        points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(shares, values, strict=True))
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _step(least: float) -> float:
    """The next round number: 1, 2 or 5 times a power of ten.

    Example:
        >>> _step(0.31), _step(7.0)
        (0.5, 10.0)
    """
    power = 10.0 ** floor(log10(least)) if least > 0 else 1.0
    return next(float(f"{factor * power:.6g}") for factor in (1, 2, 5, 10) if factor * power >= least)


def _all_bars(result: BenchmarkResult) -> Iterator[str]:
    measures = [
        ("samples a second (more is better)", [model.throughput for model in result.models], "{:,.1f}"),
        ("MB of memory at the peak", [(model.memory or 0) / 1e6 for model in result.models], "{:,.1f}"),
        ("MB of tensors", [model.size / 1e6 for model in result.models], "{:,.2f}"),
    ]
    y = float(_TOP)
    for title, values, form in measures:
        if not any(values):
            continue
        yield _text(_BARS, y - 16, title)
        for place, value in enumerate(values):
            at = y - 8 + place * (_BAR + 6)
            length = max(1.0, _BAR_WIDTH * value / max(values))
            yield f'<rect x="{_BARS}" y="{at:.1f}" width="{length:.1f}" height="{_BAR}" fill="{_COLOURS[place]}"/>'
            yield _text(_BARS + length + 6, at + _BAR - 4, form.format(value))
        y += 36 + len(values) * (_BAR + 6)
