"""A picture of a search: accuracy against the first objective."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from inc_torch.core.optional import require
from inc_torch.tuning._objectives import ACCURACY, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inc_torch.tuning._result import Trial, TuningResult

__all__ = ["draw", "pareto_front"]

# Colours that people tell apart who do not see all of them: Okabe and Ito, Color Universal Design, 2008. Shapes differ
# as well, for those who print in grey.
MET: Final = "#0072B2"
MISSED: Final = "#D55E00"
FRONT: Final = "#56B4E9"
FLOAT_MODEL: Final = "#E69F00"
INK: Final = "#333333"

_FAR: Final = 2.0
_FAR_FLOAT_MODEL: Final = 4.0
"""What is so far from the rest, in breadths of the rest, is drawn at the edge: trials, and the float model."""
_FEW: Final = 0.25
"""Share of trials that may be drawn there."""
_CROWD: Final = 8
"""Number of trials up to which there is room enough to show the float model where it is."""
_FONT: Final = 8.0
_DISTANCES: Final = (3.0, 9.0, 16.0)
"""Points between a marker and its text, the best one first."""
_DIRECTIONS: Final = tuple(math.radians(degrees) for degrees in (45, 315, 135, 225, 0, 90, 270, 180))
_CLOSE: Final = 12.0
"""How far a text may be from the middle of its marker without a line between them, in points."""
_DIGIT: Final = (5.2, 8.0)
"""Points that a digit takes; other characters are narrower."""
_NARROW: Final = 3.0
_MARKER: Final = 3.5
_RING: Final = 6.5
"""Radius of the markers of trials, and of the best one, in points."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other one dominates, by falling first coordinate.

    A point dominates another one if it is as great in both coordinates and greater in one.

    Example:
        >>> pareto_front([(1.0, 9.0), (2.0, 8.0), (2.0, 7.0), (0.0, 9.0)])
        [1, 0]
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=points.__getitem__, reverse=True):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


@final
@dataclass(frozen=True, slots=True)
class _Point:
    """A trial in the picture."""

    trial: Trial
    x: float
    y: float


@final
@dataclass(frozen=True, slots=True)
class _Window:
    """The part of an axis that is shown."""

    low: float
    high: float

    @classmethod
    def around(cls, core: Sequence[float], others: Sequence[float], far: float) -> _Window:
        """All of ``core``, and of the others what is not away from it by more than ``far`` times its breadth."""
        low, high = min(core), max(core)
        reach = far * (high - low) if high > low else math.inf
        near = [value for value in others if low - reach <= value <= high + reach]
        low, high = min([low, *near]), max([high, *near])
        margin = 0.08 * ((high - low) or abs(high) or 1.0)
        room = 2 * margin  # for what is drawn at the edge
        below, above = any(value < low for value in others), any(value > high for value in others)
        return cls(low - margin - room * below, high + margin + room * above)

    def edge(self, value: float) -> float:
        """The value itself, or a place close to the edge that it lies beyond."""
        inset = 0.03 * (self.high - self.low)
        if value < self.low:
            return self.low + inset
        return self.high - inset if value > self.high else value

    def shows(self, value: float) -> bool:
        return self.low <= value <= self.high


@final
class _Picture:
    """What is drawn where."""

    def __init__(self, result: TuningResult) -> None:
        self.result = result
        terms = [term for term in result.aim.terms if term.name != ACCURACY]
        self.objective = terms[0].name if terms else None
        self.objective_is_cost = not (terms and terms[0].higher_is_better)
        self.points = [
            _Point(trial, x, trial.score)
            for trial in result.trials
            if trial.state == "complete" and math.isfinite(trial.score) and math.isfinite(x := self._x_of(trial))
        ]
        by_number = {point.trial.number: point for point in self.points}
        self.best = None if result.best is None else by_number.get(result.best.number)
        float_x = 0.0 if self.objective is None else result.baseline.get(self.objective, math.nan)
        self.float_model = (float_x, result.goal.baseline)
        self.x_window, self.y_window = self._windows()

    def _x_of(self, trial: Trial) -> float:
        return float(trial.number) if self.objective is None else trial.objectives.get(self.objective, math.nan)

    def _windows(self) -> tuple[_Window, _Window]:
        goal, (float_x, float_y) = self.result.goal, self.float_model
        xs = [point.x for point in self.points] or [x for x in (float_x,) if math.isfinite(x)] or [0.0]
        core = [y for y in (goal.target, float_y) if math.isfinite(y)] or [0.0]
        core += [point.y for point in self.points if point.trial.is_met]
        missed = [point.y for point in self.points if not point.trial.is_met]
        window = _Window.around(core, missed, _FAR)
        if sum(not window.shows(y) for y in missed) > _FEW * len(self.points):
            window = _Window.around([*core, *missed], (), _FAR)
        far = _FAR_FLOAT_MODEL if len(self.points) > _CROWD else math.inf
        return _Window.around(xs, [x for x in (float_x,) if math.isfinite(x)], far), window

    def front(self) -> list[_Point]:
        """The trials that no other one beats in both accuracy and objective, from left to right."""
        sign = -1 if self.objective_is_cost else 1
        rank = self.result.goal.rank
        indices = pareto_front([(sign * point.x, rank(point.y)) for point in self.points])
        return sorted((self.points[index] for index in indices), key=lambda point: (point.x, rank(point.y)))

    @property
    def x_label(self) -> str:
        if self.objective is None:
            return "Trial"
        return f"{label_of(self.objective)}, {'lower' if self.objective_is_cost else 'higher'} is better"

    @property
    def y_label(self) -> str:
        return f"Accuracy, {'higher' if self.result.goal.higher_is_better else 'lower'} is better"

    @property
    def title(self) -> str:
        count, best = len(self.result.trials), self.result.best
        words = f"Tuning with {self.result.strategy!r}: {count} trial{'s' * (count != 1)}"
        if best is not None:
            words += f", the best is number {best.number}{'' if best.is_met else ', which misses the goal'}"
        hidden = count - len(self.points)
        return words + (f" ({hidden} without a full evaluation not shown)" if hidden else "")


def draw(result: TuningResult) -> Figure:
    """Return the picture that `TuningResult.plot` describes.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    require("matplotlib", "tune", "TuningResult.plot")
    from matplotlib.figure import Figure

    picture = _Picture(result)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(picture.title, loc="left", fontsize=11, color=INK)
    axes.set(xlabel=picture.x_label, ylabel=picture.y_label)
    axes.set_xlim(picture.x_window.low, picture.x_window.high)
    axes.set_ylim(picture.y_window.low, picture.y_window.high)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    _draw_front(axes, picture)
    _draw_goal(axes, picture)
    _draw_trials(axes, picture)
    _draw_float_model(axes, picture)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=_FONT + 1)
    figure.draw_without_rendering()  # places depend on the layout
    _number_trials(axes, picture)
    return figure


def _draw_goal(axes: Axes, picture: _Picture) -> None:
    target = picture.result.goal.target
    if math.isfinite(target):
        axes.axhline(target, color=INK, linestyle=(0, (5, 3)), linewidth=1.2, zorder=2)
        place = axes.get_yaxis_transform()
        text = f"goal\n{target:.4g}"
        axes.text(1.01, target, text, transform=place, ha="left", va="center", fontsize=_FONT, color=INK)


def _draw_front(axes: Axes, picture: _Picture) -> None:
    front = picture.front()
    if len(front) > 1:
        style = "steps-post" if picture.objective_is_cost else "steps-pre"
        xs, ys = [point.x for point in front], [picture.y_window.edge(point.y) for point in front]
        axes.plot(xs, ys, color=FRONT, linewidth=2.5, drawstyle=style, label="Pareto front", zorder=1.5)


def _draw_trials(axes: Axes, picture: _Picture) -> None:
    window = picture.y_window
    beyond = "v" if picture.result.goal.higher_is_better else "^"
    looks = {
        (True, True): ("o", MET, "meets the goal"),
        (False, True): ("X", MISSED, "misses it"),
        (False, False): (beyond, MISSED, "misses it by far"),
    }
    for (is_met, is_shown), (marker, color, label) in looks.items():
        chosen = [p for p in picture.points if (p.trial.is_met, window.shows(p.y)) == (is_met, is_shown)]
        if chosen:
            xs, ys = [point.x for point in chosen], [window.edge(point.y) for point in chosen]
            axes.scatter(
                xs, ys, s=42, marker=marker, color=color, edgecolor="white", linewidth=0.7, label=label, zorder=3
            )
    if picture.best is not None:
        place = [picture.best.x], [window.edge(picture.best.y)]
        axes.scatter(*place, s=150, facecolor="none", edgecolor=INK, linewidth=1.8, label="best", zorder=4)


def _draw_float_model(axes: Axes, picture: _Picture) -> None:
    x, y = picture.float_model
    if not (math.isfinite(x) and math.isfinite(y)):
        return
    place = [picture.x_window.edge(x)], [picture.y_window.edge(y)]
    axes.scatter(
        *place, marker="*", s=220, color=FLOAT_MODEL, edgecolor=INK, linewidth=0.8, label="float model", zorder=3
    )
    if not picture.x_window.shows(x):
        text, side = (f"{x:.4g} →", "right") if x > picture.x_window.high else (f"← {x:.4g}", "left")
        axes.annotate(
            text,
            (place[0][0], place[1][0]),
            xytext=(0, -12),
            textcoords="offset points",
            ha=side,
            va="top",
            fontsize=_FONT,
            color=INK,
        )


def _number_trials(axes: Axes, picture: _Picture) -> None:
    """Write numbers beside trials where there is room, the best trial and the front first."""
    from matplotlib.patheffects import withStroke

    best = [] if picture.best is None else [picture.best]
    points = list({point.trial.number: point for point in [*best, *picture.front(), *picture.points]}.values())
    if not points:
        return
    is_shown = [picture.y_window.shows(point.y) for point in points]
    xy = [(point.x, picture.y_window.edge(point.y)) for point in points]
    texts = [
        str(point.trial.number) if shown else f"{point.trial.number} ({point.y:.3g})"
        for point, shown in zip(points, is_shown, strict=True)
    ]
    to_points = 72 / axes.figure.dpi
    left, bottom, right, top = (side * to_points for side in axes.bbox.extents)
    star = picture.x_window.edge(picture.float_model[0]), picture.y_window.edge(picture.float_model[1])
    *places, obstacle = (tuple(place) for place in axes.transData.transform([*xy, star]) * to_points)
    radii = [_RING if point is picture.best else _MARKER for point in points]
    shifts = place_texts(texts, places, radii, (left, bottom, right, top), obstacle)
    for point, text, place, shift in zip(points, texts, xy, shifts, strict=True):
        if shift is not None:
            gap = math.hypot(max(0.0, abs(shift[0]) - _width(text) / 2), shift[1])
            axes.annotate(
                text,
                place,
                xytext=shift,
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=_FONT,
                color=INK,
                weight="bold" if point is picture.best else "normal",
                path_effects=[withStroke(linewidth=2, foreground="white")],
                arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": INK} if gap > _CLOSE else None,
                zorder=5,
            )


def place_texts(
    texts: Sequence[str],
    places: Sequence[tuple[float, float]],
    radii: Sequence[float],
    frame: Box,
    obstacle: tuple[float, float],
) -> list[tuple[float, float] | None]:
    """Find room beside markers, for one text after another.

    Args:
        texts: What is written.
        places: Of the middle of each marker; all lengths are in points.
        radii: Of the markers.
        frame: In which all texts have to be.
        obstacle: Middle of something that no text may cover.

    Returns:
        For each text its middle as seen from the marker; None where there is no room. No text covers another one, or
        the middle of a marker.
    """
    taken = [_box(x, y, 2 * _MARKER, 2 * _MARKER) for x, y in places] + [_box(*obstacle, 2 * _RING, 2 * _RING)]
    shifts: list[tuple[float, float] | None] = []
    for text, (x, y), radius in zip(texts, places, radii, strict=True):
        width = _width(text)
        for shift in _shifts(radius, width):
            box = _box(x + shift[0], y + shift[1], width, _DIGIT[1])
            if _holds(frame, box) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                shifts.append(shift)
                break
        else:
            shifts.append(None)
    return shifts


def _shifts(radius: float, width: float) -> Iterator[tuple[float, float]]:
    """From a marker to the middle of its text, the best one first."""
    for distance in _DISTANCES:
        for angle in _DIRECTIONS:
            across = math.cos(angle)
            yield (radius + distance) * across + width / 2 * _sign(across), (radius + distance) * math.sin(angle)


def _width(text: str) -> float:
    return sum(_DIGIT[0] if character.isdigit() else _NARROW for character in text)


def _sign(value: float) -> int:
    return 0 if abs(value) < 1e-9 else int(math.copysign(1, value))  # noqa: PLR2004  rounding of a cosine


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _holds(frame: Box, box: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
