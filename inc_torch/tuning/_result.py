"""What a search found: its trials, the best of them, and a file that keeps both."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, final, get_args

from inc_torch.core.errors import ArtifactError, ConfigError
from inc_torch.core.files import made_directory, parse_json, write_text
from inc_torch.tuning import _result_view as view
from inc_torch.tuning._objectives import Aim, Term
from inc_torch.tuning._space import FALLBACKS, Choice, Mode, Operation, Recipe, Space
from inc_torch.tuning._stored import Stored, plain_number
from inc_torch.tuning._strategy import Goal

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group

__all__ = ["Trial", "TuningResult"]

FORMAT: Final = "inc_torch tuning result"
VERSION: Final = 1

State = Literal["running", "complete", "cut", "failed"]


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one recipe.

    Attributes:
        number: From 1, in the order in which trials began.
        recipe: What was tried.
        score: Accuracy of the model; of a trial that was cut that of the batches so far; NaN if there is none.
        is_met: Whether the goal is met; never by a trial that is not complete.
        objectives: What else was measured, by name; NaN of a trial that was cut.
        seconds: Of the whole trial.
        state: ``"complete"``; ``"cut"``, as the goal was out of reach; ``"failed"``; or ``"running"``.
    """

    number: int
    recipe: Recipe
    score: float
    is_met: bool
    objectives: Mapping[str, float]
    seconds: float
    state: State = "complete"


@final
@dataclass(frozen=True, slots=True)
class TuningResult:
    """What a search chose from, what it was after, what it tried, and what it found.

    Attributes:
        space: What could be chosen.
        goal: The accuracy that had to be kept.
        strategy: Name of who proposed the trials.
        trials: In order.
        best: The trial whose model was returned; one that misses the goal, if all do; None without any trial.
        reason: Why the search ended, as part of a sentence: ``"trial 3 meets the goal"``.
        baseline: Objectives of the float model, by name.
        sensitivity: For each operation, the ratio in decibels of signal to rounding noise in its output, all
            operations in their defaults; empty if it was not measured. The lower, the more an operation loses.
        aim: The objectives.

    Example:
        >>> int8, fp32 = Choice("int8", Mode.STATIC), Choice("fp32", Mode.FLOAT32)
        >>> space = Space((Operation("fc1", "Linear", (int8, fp32)), Operation("fc2", "Linear", (int8, fp32))))
        >>> trials = (
        ...     Trial(1, Recipe(("int8", "int8")), 0.70, False, {"performance": 1.0}, 2.0),
        ...     Trial(2, Recipe(("int8", "fp32")), 0.79, True, {"performance": 1.5}, 2.5),
        ... )
        >>> result = TuningResult(
        ...     space, Goal(0.8, 0.78), "basic", trials, trials[1], "trial 2 meets the goal", {"performance": 2.0}
        ... )
        >>> result.fallen_back, result.history[1]["changes"]
        (('fc2',), {'fc2': 'fp32'})
    """

    space: Space
    goal: Goal
    strategy: str
    trials: tuple[Trial, ...]
    best: Trial | None
    reason: str
    baseline: Mapping[str, float]
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    aim: Aim = field(default_factory=Aim)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A plain dict for each trial, with only what differs from the default recipe; for a data frame, or to read."""
        return [
            {
                "number": trial.number,
                "state": trial.state,
                "score": trial.score,
                "met": trial.is_met,
                "objectives": dict(trial.objectives),
                "seconds": trial.seconds,
                "changes": view.changes(self.space, trial.recipe),
            }
            for trial in self.trials
        ]

    @property
    def fallen_back(self) -> tuple[str, ...]:
        """The operations that the best recipe leaves in floating point, in the order of the model."""
        if self.best is None:
            return ()
        return tuple(operation.name for operation in self.space.in_modes(self.best.recipe, *FALLBACKS))

    # ------------------------------------------------------------------------------------------- files

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the way back."""
        return {
            "format": f"{FORMAT}/{VERSION}",
            "strategy": self.strategy,
            "reason": self.reason,
            "goal": {
                "baseline": plain_number(self.goal.baseline),
                "target": plain_number(self.goal.target),
                "higher_is_better": self.goal.higher_is_better,
            },
            "aim": [
                {"name": term.name, "higher_is_better": term.higher_is_better, "weight": plain_number(term.weight)}
                for term in self.aim.terms
            ],
            "space": _plain_space(self.space),
            "baseline": _plain_numbers(self.baseline),
            "sensitivity": _plain_numbers(self.sensitivity),
            "trials": [_plain_trial(trial, self.space) for trial in self.trials],
            "best": None if self.best is None else self.best.number,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], file: str = "The tuning result") -> TuningResult:
        """Read what `to_dict` gave.

        Args:
            data: That.
            file: Where it comes from, for messages.

        Raises:
            ArtifactError: Something is missing, is not what it should be, or comes from a newer version.
        """
        return cls._read(Stored(data, file))

    @classmethod
    def _read(cls, root: Stored) -> TuningResult:
        _check_format(root["format"])
        goal, space = root["goal"], _read_space(root["space"])
        trials = tuple(_read_trial(trial, space) for trial in root["trials"].items())
        by_number = {trial.number: trial for trial in trials}
        if len(by_number) < len(trials):
            root["trials"].refuse("trials of different numbers")
        best = [by_number.get(number.integer()) for number in root["best"].optional()]
        if None in best:
            root["best"].refuse(f"the number of one of the {len(trials)} trials")
        return cls(
            space=space,
            goal=Goal(goal["baseline"].number(), goal["target"].number(), goal["higher_is_better"].flag()),
            strategy=root["strategy"].text(),
            trials=trials,
            best=next(iter(best), None),
            reason=root["reason"].text(),
            baseline=_read_numbers(root["baseline"]),
            sensitivity=_read_numbers(root["sensitivity"]),
            aim=_read_aim(root["aim"]),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON; a write that is cut short leaves the old file.

        Raises:
            ArtifactError: The file cannot be written.
        """
        target = Path(path)
        made_directory(target.parent)
        write_text(target, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TuningResult:
        """Read what `save` wrote.

        Raises:
            ArtifactError: The file cannot be read, is damaged, foreign, or comes from a newer version.
        """
        file = repr(os.fspath(path))
        try:
            data = parse_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            message = f"{file} cannot be read: {error.strerror}. Expected a file that result.save(path) wrote."
            raise ArtifactError(message) from error
        except ValueError as error:
            message = (
                f"{file} is damaged or cut short: got {error}, expected JSON. Save the result again with "
                "result.save(path)."
            )
            raise ArtifactError(message) from error
        return cls._read(Stored(data, file))

    # ------------------------------------------------------------------------------------------- for people

    def print(self) -> None:
        """Print a summary with its tables, folded to the width of the screen."""
        from rich.console import Console

        Console().print(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw accuracy against the first objective, a point for each trial.

        Args:
            path: Where to save the picture; its ending says how: ``.png``, ``.svg``, ``.pdf``.

        Returns:
            The figure of matplotlib, which notebooks show.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        from inc_torch.tuning._result_plot import draw

        figure = draw(self)
        if path is not None:
            figure.savefig(path)
        return figure

    def __str__(self) -> str:
        """The summary and its tables in 80 columns of plain text."""
        return view.as_text(view.as_rich(self))

    def __rich__(self) -> Group:
        """The same for ``rich``'s ``print``."""
        return view.as_rich(self)

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return view.as_html(self)


def _check_format(stored: Stored) -> None:
    name, _, version = stored.text().partition("/")
    if name != FORMAT or not version.isdecimal():
        stored.refuse(f"'{FORMAT}/{VERSION}'")
    if int(version) > VERSION:
        message = (
            f"{stored.file} was written by a newer inc_torch: got format {stored.text()!r}, expected "
            f"'{FORMAT}/{VERSION}' or older. Upgrade: pip install -U inc_torch."
        )
        raise ArtifactError(message)


def _plain_numbers(numbers: Mapping[str, float]) -> dict[str, float | str]:
    return {name: plain_number(value) for name, value in numbers.items()}


def _read_numbers(stored: Stored) -> dict[str, float]:
    return {name: value.number() for name, value in stored.entries().items()}


def _read_aim(stored: Stored) -> Aim:
    terms = tuple(
        Term(term["name"].text(), term["higher_is_better"].flag(), term["weight"].number()) for term in stored.items()
    )
    if not terms:
        stored.refuse("at least one objective")
    return Aim(terms)


def _plain_space(space: Space) -> dict[str, Any]:
    return {
        "operations": [
            {
                "name": operation.name,
                "kind": operation.kind,
                "choices": {choice.label: choice.mode.value for choice in operation.choices},
            }
            for operation in space.operations
        ],
        "samples": list(space.samples),
        "alphas": list(map(plain_number, space.alphas)),
        "blocks": [list(block) for block in space.blocks],
    }


def _read_space(stored: Stored) -> Space:
    operations = tuple(map(_read_operation, stored["operations"].items()))
    if len({operation.name for operation in operations}) < len(operations):
        stored["operations"].refuse("operations of different names")
    return Space(
        operations,
        tuple(samples.integer() for samples in stored["samples"].items()),
        tuple(alpha.number() for alpha in stored["alphas"].items()),
        tuple(tuple(name.text() for name in block.items()) for block in stored["blocks"].items()),
    )


def _read_operation(stored: Stored) -> Operation:
    modes = {mode.value: mode for mode in Mode}
    choices = []
    for label, mode in stored["choices"].entries().items():
        if mode.text() not in modes:
            mode.refuse(f"one of {', '.join(modes)}")
        choices.append(Choice(label, modes[mode.text()]))
    if not choices:
        stored["choices"].refuse("at least one choice")
    return Operation(stored["name"].text(), stored["kind"].text(), tuple(choices))


def _plain_trial(trial: Trial, space: Space) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state,
        "score": plain_number(trial.score),
        "is_met": trial.is_met,
        "objectives": _plain_numbers(trial.objectives),
        "seconds": plain_number(trial.seconds),
        "changed": view.changed_labels(space, trial.recipe),
        "samples": trial.recipe.samples,
        "alpha": None if trial.recipe.alpha is None else plain_number(trial.recipe.alpha),
    }


def _read_trial(stored: Stored, space: Space) -> Trial:
    states: dict[str, State] = {state: state for state in get_args(State)}
    state = stored["state"].text()
    if state not in states:
        stored["state"].refuse(f"one of {', '.join(states)}")
    return Trial(
        number=stored["number"].integer(),
        recipe=_read_recipe(stored, space),
        score=stored["score"].number(),
        is_met=stored["is_met"].flag(),
        objectives=_read_numbers(stored["objectives"]),
        seconds=stored["seconds"].number(),
        state=states[state],
    )


def _read_recipe(stored: Stored, space: Space) -> Recipe:
    changed = {name: label.text() for name, label in stored["changed"].entries().items()}
    try:
        choices = {name: space.operation(name).labelled(label) for name, label in changed.items()}
    except ConfigError:
        stored["changed"].refuse("operations and labels of the space")
    return replace(
        space.of(choices),
        samples=next((samples.integer() for samples in stored["samples"].optional()), None),
        alpha=next((alpha.number() for alpha in stored["alpha"].optional()), None),
    )
