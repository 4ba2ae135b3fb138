"""How a search and its result are shown: lines of progress, tables, text, HTML."""

from __future__ import annotations

import html
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from inc_torch.tuning._objectives import label_of
from inc_torch.tuning._space import Choice, Mode, Recipe, Space

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from inc_torch.tuning._result import Trial, TuningResult
    from inc_torch.tuning._strategy import Goal

__all__ = [
    "Sheet",
    "as_html",
    "as_rich",
    "as_text",
    "changed_labels",
    "changes",
    "described",
    "ops_by_dtype",
    "sensitive_operations",
    "trial_line",
    "tuning_results",
]

WIDTH: Final = 80
_NAMES_WIDTH: Final = 44
"""Characters that the names of changed operations may take in a line."""
_ALL_NAMES: Final = 400
"""The same in a summary."""
_MOST_LABELS: Final = 2
"""Ways to compute that a line spells out with names of operations; of more it gives the numbers."""
_MOST_SENSITIVE: Final = 10
_ABSENT: Final = "n/a"

# ----------------------------------------------------------------------------------------------- what was changed


def changed_labels(space: Space, recipe: Recipe) -> dict[str, str]:
    """The label of each operation that ``recipe`` does not leave in its default."""
    return {
        operation.name: label
        for operation, label in zip(space.operations, recipe.labels, strict=True)
        if label != operation.default.label
    }


def changes(space: Space, recipe: Recipe) -> dict[str, str | float | None]:
    """All in which ``recipe`` differs from the default: labels by operation, and numbers.

    Example:
        >>> space = Space((), samples=(100, 500))
        >>> changes(space, Recipe((), samples=500))
        {'calibration samples': 500}
    """
    default = space.default
    numbers = {"calibration samples": "samples", "smoothing alpha": "alpha"}
    return changed_labels(space, recipe) | {
        name: getattr(recipe, field)
        for name, field in numbers.items()
        if getattr(recipe, field) != getattr(default, field)
    }


def described(space: Space, recipe: Recipe, width: int = _NAMES_WIDTH) -> str:
    """In what ``recipe`` differs from the default, in a few words.

    Args:
        space: What it was chosen from.
        recipe: The recipe.
        width: Characters that names of operations may take.

    Example:
        >>> from inc_torch.tuning._space import Operation
        >>> ways = Choice("int8", Mode.STATIC), Choice("fp32", Mode.FLOAT32)
        >>> space = Space(tuple(Operation(f"layer.{index}.dense", "Linear", ways) for index in range(9)))
        >>> described(space, space.fallen_back(space.default, ["layer.3.dense", "layer.7.dense"], Mode.FLOAT32))
        '2 ops in fp32: layer.3.dense, layer.7.dense'
    """
    by_label: defaultdict[str, list[str]] = defaultdict(list)
    labels = changed_labels(space, recipe)
    for name, label in labels.items():
        by_label[label].append(name)
    total, each = len(space.operations), width // max(1, len(by_label))
    spell_out = len(by_label) <= _MOST_LABELS
    parts = [_group(label, names, total, each if spell_out else 0) for label, names in by_label.items()]
    numbers = [f"{name} {value}" for name, value in changes(space, recipe).items() if name not in labels]
    return "; ".join([*parts, *numbers]) or "default"


def _group(label: str, names: Sequence[str], total: int, width: int) -> str:
    if len(names) == total > 1:
        return f"all {total} ops in {label}"
    count = f"{len(names)} op{'s' * (len(names) > 1)} in {label}"
    return f"{count}: {_shortened(names, width)}" if width else count


def _shortened(names: Sequence[str], width: int) -> str:
    """As many names as fit, at least one."""
    shown = names[0]
    for name in names[1:]:
        if len(shown) + len(name) + len(", , …") > width:
            return f"{shown}, …"
        shown = f"{shown}, {name}"
    return shown


# ----------------------------------------------------------------------------------------------- lines


def trial_line(
    trial: Trial, space: Space, goal: Goal, best: Trial | None, *, most: int, remaining: float | None = None
) -> str:
    """Return a line of progress.

    Args:
        trial: The one that just ended.
        space: What it was chosen from.
        goal: What its score is held against.
        best: The best of all trials so far, this one included.
        most: Greatest number of trials.
        remaining: Seconds until the search ends; None if it has no such end.

    Example:
        >>> from inc_torch.tuning._objectives import Aim, choose
        >>> from inc_torch.tuning._result import Trial
        >>> from inc_torch.tuning._strategy import Goal
        >>> trial = Trial(1, Recipe(()), 0.79, True, {"latency": 3.25}, 1.0)
        >>> trial_line(trial, Space(()), Goal(0.8, 0.78), trial, most=100, remaining=90.0)
        'Trial 1/100: default | accuracy 0.7900, goal 0.7800 met | latency 3.2500 ms | best so far | 1 min 30 s left'
    """
    parts = [f"Trial {trial.number:>{len(str(most))}}/{most}: {described(space, trial.recipe)}"]
    parts += [_judged(trial, goal)]
    if trial.state == "complete":
        parts += [_with_unit(name, value) for name, value in list(trial.objectives.items())[:1]]
    if best is not None and best.number == trial.number:
        parts.append("best so far")
    if remaining is not None:
        parts.append(f"{_duration(remaining)} left")
    return " | ".join(parts)


def _judged(trial: Trial, goal: Goal) -> str:
    if trial.state in ("failed", "running"):
        return trial.state
    accuracy, target = f"accuracy {_number(trial.score)}", f"goal {_number(goal.target)}"
    if math.isinf(goal.target):
        return accuracy
    if trial.state == "cut":
        return f"{accuracy} when it was cut, {target} out of reach"
    return f"{accuracy}, {target} {'met' if trial.is_met else 'missed'}"


def _with_unit(name: str, value: float) -> str:
    """``latency 3.2500 ms``, of the label ``Latency (ms)``."""
    text, _, unit = label_of(name).partition(" (")
    return f"{text.lower()} {_number(value)} {unit.removesuffix(')')}".rstrip()


def _duration(seconds: float) -> str:
    """In the two greatest units."""
    whole = max(0, round(seconds))
    sizes = {"h": whole // 3600, "min": whole // 60 % 60, "s": whole % 60}
    shown = [f"{count} {unit}" for unit, count in sizes.items() if count]
    return " ".join(shown[:2]) or "0 s"


def _number(value: float | None) -> str:
    """With 4 decimals; small numbers with as many digits."""
    if value is None or math.isnan(value):
        return _ABSENT
    return f"{value:.4g}" if 0 < abs(value) < 1e-3 else f"{value:z.4f}"  # noqa: PLR2004


# ----------------------------------------------------------------------------------------------- tables


@final
@dataclass(frozen=True, slots=True)
class Sheet:
    """A small table of text.

    Attributes:
        title: Above it.
        header: One word or more for each column.
        rows: As wide as the header.
        texts: How many columns, from the left, hold words; the others hold numbers, aligned to the right.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1

    def __rich__(self) -> Table:
        """For ``rich``'s ``print``."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title, style="bold"), box=box.SIMPLE_HEAD, show_edge=False, title_justify="left")
        for place, name in enumerate(self.header):
            is_text = place < self.texts
            table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def __str__(self) -> str:
        """In 80 columns of plain text."""
        return as_text(self.__rich__())

    def html(self) -> str:
        """An HTML table."""
        header = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        rows = "".join(
            "<tr>" + "".join(self._cell(place, cell) for place, cell in enumerate(row)) + "</tr>" for row in self.rows
        )
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead><tr>{header}</tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def _cell(self, place: int, cell: str) -> str:
        side = "left" if place < self.texts else "right"
        return f'<td style="text-align: {side}">{html.escape(cell)}</td>'


def ops_by_dtype(space: Space, recipe: Recipe) -> Sheet:
    """How many operations of each type ``recipe`` computes in what; columns of nothing but zeros are left out.

    Source: INC 2.6.1: "Mixed Precision Statistics"; differs in that operations of the model are counted instead of
    nodes of a graph, and in the last row.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for operation, choice in space.chosen(recipe):
        counts[operation.kind][_dtype(choice)] += 1
    totals = sum(counts.values(), Counter[str]())
    known = dict.fromkeys(_DTYPES.values())
    columns = [*(name for name in known if name in totals), *sorted(totals.keys() - known.keys())]
    if len(counts) > 1:
        counts["all"] = totals
    rows = tuple(
        (kind, str(count.total()), *(str(count[column]) for column in columns)) for kind, count in counts.items()
    )
    return Sheet("Operations by dtype", ("Op Type", "Total", *columns), rows)


_DTYPES: Final = {
    Mode.STATIC: "INT8",
    Mode.DYNAMIC: "INT8",
    Mode.BFLOAT16: "BF16",
    Mode.FLOAT16: "FP16",
    Mode.FLOAT32: "FP32",
}


def _dtype(choice: Choice) -> str:
    """Column that a choice is counted in; what has fewer bits is called by its label."""
    return _DTYPES.get(choice.mode, choice.label.upper())


def tuning_results(goal: Goal, baseline: Mapping[str, float], best: Trial | None, trial: Trial | None = None) -> Sheet:
    """Accuracy and objectives of the float model, of one trial if it is given, and of the best one.

    Source: INC 2.6.1: "Tune Result Statistics".
    """
    names = dict.fromkeys([*baseline, *(trial.objectives if trial else ()), *(best.objectives if best else ())])
    columns: dict[str, tuple[float | None, Mapping[str, float]]] = {"Baseline": (goal.baseline, baseline)}
    if trial is not None:
        columns[f"Trial {trial.number}"] = (trial.score, trial.objectives if trial.state == "complete" else {})
    head = "Best" if best is None or trial is not None else f"Best (trial {best.number})"
    columns[head] = (None, {}) if best is None else (best.score, best.objectives)
    rows = [("Accuracy", *(_number(score) for score, _ in columns.values()))]
    rows += [(label_of(name), *(_number(values.get(name)) for _, values in columns.values())) for name in names]
    return Sheet("Tuning result", ("Info", *columns), tuple(rows))


def sensitive_operations(
    space: Space, recipe: Recipe | None, sensitivity: Mapping[str, float], most: int = _MOST_SENSITIVE
) -> Sheet:
    """The operations that rounding hurts most, and what ``recipe`` computes them in.

    Args:
        space: The operations.
        recipe: The best one; None is the default.
        sensitivity: Ratio of signal to noise of each operation, in decibels.
        most: Rows at most.
    """
    known = [
        (sensitivity[operation.name], operation, choice)
        for operation, choice in space.chosen(space.default if recipe is None else recipe)
        if operation.name in sensitivity
    ]
    known.sort(key=lambda entry: float("-inf") if math.isnan(entry[0]) else entry[0])
    title = "Most sensitive operations" if len(known) <= most else f"Most sensitive operations ({most} of {len(known)})"
    rows = tuple(
        (operation.name, choice.label, _ABSENT if math.isnan(ratio) else f"{ratio:.1f}")
        for ratio, operation, choice in known[:most]
    )
    return Sheet(title, ("Operation", "Default" if recipe is None else "Best", "SNR (dB)"), rows, texts=2)


# ----------------------------------------------------------------------------------------------- the whole


def as_rich(result: TuningResult) -> Group:
    """Return the summary and the tables."""
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text(line) for line in _summary(result)), *_spaced(_sheets(result)))


def _spaced(sheets: Sequence[Sheet]) -> Iterator[RenderableType]:
    for sheet in sheets:
        yield ""
        yield sheet


def as_text(renderable: RenderableType) -> str:
    """Return plain text of 80 columns."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def as_html(result: TuningResult) -> str:
    """Return paragraphs and tables."""
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in _summary(result))
    return lines + "".join(sheet.html() for sheet in _sheets(result))


def _summary(result: TuningResult) -> list[str]:
    goal, best = result.goal, result.best
    count, met = len(result.trials), sum(trial.is_met for trial in result.trials)
    lines = [f"Strategy {result.strategy!r} tried {count} recipe{'s' * (count != 1)}, and ended as {result.reason}."]
    if math.isinf(goal.target):
        lines.append("No accuracy was asked for.")
    else:
        asked = f"{_number(goal.target)} or {'more' if goal.higher_is_better else 'less'}"
        lines.append(f"{met} met the goal: accuracy {asked}; the float model has {_number(goal.baseline)}.")
    if best is not None:
        missed = "" if best.is_met else ", which misses the goal"
        lines.append(f"Best is trial {best.number}{missed}: {described(result.space, best.recipe, _ALL_NAMES)}")
    return lines


def _sheets(result: TuningResult) -> list[Sheet]:
    sheets = [tuning_results(result.goal, result.baseline, result.best)]
    recipe = None if result.best is None else result.best.recipe
    if recipe is not None:
        sheets.append(ops_by_dtype(result.space, recipe))
    if result.sensitivity:
        sheets.append(sensitive_operations(result.space, recipe, result.sensitivity))
    return sheets
