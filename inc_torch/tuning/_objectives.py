"""What a search is after among models that are accurate enough: how it is measured, and which model wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, final, runtime_checkable

from torch import nn

from inc_torch.core.batches import Inputs
from inc_torch.core.errors import ConfigTypeError, did_you_mean
from inc_torch.core.registry import Registry

if TYPE_CHECKING:
    from inc_torch.tuning._result import Trial
    from inc_torch.tuning._strategy import Goal

__all__ = [
    "ACCURACY",
    "OBJECTIVES",
    "Aim",
    "AroundEvaluation",
    "Objective",
    "OnModel",
    "Term",
    "choose",
    "label_of",
    "measured",
    "objective_custom_registry",
]

ACCURACY = "accuracy"
"""Name of the objective that is the score itself: nothing more is measured for it."""

METHODS = ("start", "end", "measure")


class Objective:
    """Something that a search makes small, or great, among models that are accurate enough.

    A subclass has one of these:

    - ``start() -> None`` and ``end() -> float``, called right before and right after the evaluation of a model;
    - ``measure(model, batches) -> float``, called on the finished model with some `Inputs`.

    What it returns is a finite number greater than 0, or 0. Instead of returning it, ``end`` may append it to
    ``self._result_list``, as objectives written for INC do.

    Attributes:
        representation: What tables call it, with the unit in parentheses at the end; the name if it is empty.
        higher_is_better: Whether a greater value is a better one.

    Example:
        >>> class Parameters(Objective):
        ...     representation = "Parameters (millions)"
        ...
        ...     def measure(self, model, batches):
        ...         return sum(parameter.numel() for parameter in model.parameters()) / 1e6
        >>> objective_custom_registry("parameters", Parameters)
        >>> measured({"parameters": Parameters()}, lambda: 0.9, nn.Linear(9, 100), [])
        (0.9, {'parameters': 0.001})
    """

    representation: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False

    def __init__(self) -> None:
        self._result_list: list[float] = []


@runtime_checkable
class AroundEvaluation(Protocol):
    """An objective that is measured around the evaluation of a model."""

    def start(self) -> object:
        """Begin."""
        ...

    def end(self) -> float | None:
        """Return what was measured, or append it to ``self._result_list``."""
        ...


@runtime_checkable
class OnModel(Protocol):
    """An objective that is measured on the finished model."""

    def measure(self, model: nn.Module, batches: Sequence[Inputs]) -> float:
        """Return what was measured.

        Args:
            model: In any mode; left in it.
            batches: Real ones, on the model's device.
        """
        ...


OBJECTIVES: Registry[type] = Registry("objective", "inc_torch.tuning.objectives")
"""Classes of objectives by name; called without arguments."""


def objective_custom_registry(name: str, obj_cls: type) -> None:
    """Make a class an objective that configs can name.

    Args:
        name: The name.
        obj_cls: A class with ``start`` and ``end``, or with ``measure``, see `Objective`, from which it may be derived.

    Raises:
        ConfigError: Another class has that name.
        ConfigTypeError: It is no class, or has neither.

    Source: INC 2.6.1: ``objective_custom_registry``; differs in that the class is checked, that the name may be used in
    a ``TuningCriterion``, and that the same class may be filed again, as running a cell of a notebook twice does.
    """
    _check_class(name, obj_cls)
    OBJECTIVES.names()  # the built-in ones first, so that their names are taken
    lines = (obj_cls.__doc__ or "").strip().splitlines()
    OBJECTIVES.register(name, summary=lines[0] if lines else "")(obj_cls)


def _check_class(name: str, given: object) -> None:
    if not isinstance(given, type):
        message = f"The objective {name!r} is {given!r}: expected a class, which is called without arguments."
        raise ConfigTypeError(message)
    has = {method: callable(getattr(given, method, None)) for method in METHODS}
    if has["measure"] or (has["start"] and has["end"]):
        return
    missing = "end" if has["start"] else "start" if has["end"] else "measure"
    public = [attribute for attribute in dir(given) if not attribute.startswith("_")]
    message = (
        f"The objective {name!r} is {given!r} without a method {missing!r}: expected start() and end() -> float, "
        f"called around the evaluation, or measure(model, batches) -> float.{did_you_mean(missing, public)} "
        "Add the method."
    )
    raise ConfigTypeError(message)


def label_of(name: str) -> str:
    """What tables call an objective; its name if it is not registered, as after loading a result of somebody else.

    Example:
        >>> label_of("latency"), label_of("carbon")
        ('Latency (ms)', 'Carbon')
    """
    known = {entry.name: entry.value for entry in OBJECTIVES}
    label = getattr(known.get(name), "representation", "") or name
    return label[:1].upper() + label[1:]


def measured(
    objectives: Mapping[str, object],
    evaluate: Callable[[], float],
    model: nn.Module,
    batches: Sequence[Inputs],
) -> tuple[float, dict[str, float]]:
    """Evaluate a model, and measure objectives around that and after it.

    Args:
        objectives: By name, as `Aim.objectives` gives them; the first one is the outermost around the evaluation.
        evaluate: Returns the score of ``model``.
        model: The finished model.
        batches: What objectives of the other kind may run it on.

    Returns:
        What ``evaluate`` returned, and the values by name, without accuracy, which is the score.

    Raises:
        ConfigTypeError: A value is no finite number.
    """
    around = {name: objective for name, objective in objectives.items() if isinstance(objective, AroundEvaluation)}
    for objective in around.values():
        objective.start()
    score = evaluate()
    found: dict[str, object] = {name: _ended(objective) for name, objective in reversed(around.items())}
    for name, other in objectives.items():
        if name not in found and isinstance(other, OnModel):
            found[name] = other.measure(model, batches)
    return score, {name: _finite(name, found[name]) for name in objectives if name in found}


def _ended(objective: AroundEvaluation) -> object:
    """What ``end`` returns, or what it has noted in INC's way."""
    value = objective.end()
    noted: Sequence[object] = getattr(objective, "_result_list", ())
    return noted[-1] if value is None and noted else value


def _finite(name: str, value: object) -> float:
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    message = f"The objective {name!r} measured {value!r}: expected a finite number. Let end() or measure() return one."
    raise ConfigTypeError(message)


@final
@dataclass(frozen=True, slots=True)
class Term:
    """One objective of several.

    Attributes:
        name: As it is registered.
        higher_is_better: Whether a greater value is a better one; of accuracy the goal says it.
        weight: How much it counts, 0 or more.
    """

    name: str
    higher_is_better: bool = False
    weight: float = 1.0


@final
@dataclass(frozen=True, slots=True)
class Aim:
    """What a search is after among models that are accurate enough.

    Attributes:
        terms: At least one objective.

    Example:
        >>> Aim.of({"objective": ["accuracy", "modelsize"], "weight": [0.8, 0.2]}).terms
        (Term(name='accuracy', higher_is_better=True, weight=0.8), \
Term(name='modelsize', higher_is_better=False, weight=0.2))
    """

    terms: tuple[Term, ...] = (Term("performance"),)

    @classmethod
    def of(cls, objective: Sequence[str] | Mapping[str, Any]) -> Aim:
        """Read ``TuningCriterion.objective``, which that has checked.

        Args:
            objective: Names; or a mapping of parallel lists ``objective``, and if wanted ``weight`` (else 1) and
                ``higher_is_better`` (else what the classes say).

        Raises:
            ConfigError: A name is unknown.
        """
        parts: Mapping[str, Any] = objective if isinstance(objective, Mapping) else {"objective": objective}
        names: Sequence[str] = parts["objective"]
        weights: Sequence[float] = parts.get("weight") or [1.0] * len(names)
        directions: Sequence[bool] = parts.get("higher_is_better") or [
            bool(getattr(OBJECTIVES.get(name), "higher_is_better", False)) for name in names
        ]
        return cls(
            tuple(
                Term(name, higher, float(weight))
                for name, higher, weight in zip(names, directions, weights, strict=True)
            )
        )

    def objectives(self) -> dict[str, object]:
        """New objects to measure with, by name, see `measured`."""
        return {term.name: OBJECTIVES.get(term.name)() for term in self.terms}


def choose(trials: Sequence[Trial], aim: Aim, goal: Goal) -> Trial | None:
    """Return the trial that wins; of equal ones the earliest.

    Among complete trials that meet the goal that is the one with the least (greatest) objective. Of several
    objectives, the one with the greatest merit:

        r_ij    = 1 / objective_j of trial i, for a lower-is-better objective; the negative of that for the others
        s_ij    = (r_ij - min_i r_ij) / (max_i r_ij - min_i r_ij), over all complete trials i; 0 where r is constant
        merit_i = sum_j weight_j * s_ij

    For accuracy, r is the score itself, turned so that greater is better. If no trial meets the goal, the one with the
    best score wins, complete trials before those that were cut.

    Args:
        trials: In any order; complete ones have a value for each objective of ``aim`` but accuracy.
        aim: The objectives.
        goal: What scores are held against.

    Returns:
        A trial, None if none is complete or cut.

    Example:
        >>> from inc_torch.tuning._result import Trial
        >>> from inc_torch.tuning._space import Recipe
        >>> from inc_torch.tuning._strategy import Goal
        >>> trials = [
        ...     Trial(1, Recipe(("int8",)), 0.70, False, {"modelsize": 25.0}, 1.0),
        ...     Trial(2, Recipe(("bf16",)), 0.79, True, {"modelsize": 50.0}, 1.0),
        ...     Trial(3, Recipe(("fp32",)), 0.80, True, {"modelsize": 100.0}, 1.0),
        ... ]
        >>> choose(trials, Aim.of(["modelsize"]), Goal(baseline=0.8, target=0.78)).number
        2
        >>> choose(trials, Aim.of({"objective": ["modelsize", "accuracy"], "weight": [1, 4]}), Goal(0.8, 0.78)).number
        3

    Source: INC 2.6.1: the formula, which divides the baseline's value by the trial's (scaling takes that factor out
    again) and gives the same merit 0 to all that miss the goal. Differs in that accuracy enters as it is where a
    relative loss is tolerated, so that scores around 0 are no harm; and in that, of trials with one objective, equal
    ones do not replace each other.
    """
    ordered = sorted(trials, key=lambda trial: trial.number)
    complete = [trial for trial in ordered if trial.state == "complete"]
    if not any(trial.is_met for trial in complete):
        rest = complete or [trial for trial in ordered if trial.state == "cut"]
        return max(rest, key=lambda trial: goal.rank(trial.score), default=None)
    single = len(aim.terms) == 1
    columns = [[_gain(trial, term, goal, inverse=not single) for trial in complete] for term in aim.terms]
    merits = columns[0] if single else _merits(columns, [term.weight for term in aim.terms])
    met = [(merit, trial) for merit, trial in zip(merits, complete, strict=True) if trial.is_met]
    return max(met, key=lambda pair: pair[0])[1]


_ZERO = 1e-20
"""What stands for an objective of 0, by which nothing can be divided."""


def _gain(trial: Trial, term: Term, goal: Goal, *, inverse: bool) -> float:
    """A number that is greater for better trials."""
    if term.name == ACCURACY:
        return goal.rank(trial.score)
    value = trial.objectives[term.name]
    if inverse:
        return (-1 if term.higher_is_better else 1) / (value or _ZERO)
    return value if term.higher_is_better else -value


def _merits(columns: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """The weighted sum, over columns, of each row."""
    scaled = [_scaled(column) for column in columns]
    return [sum(map(float.__mul__, map(float, weights), row)) for row in zip(*scaled, strict=True)]


def _scaled(values: Sequence[float]) -> list[float]:
    """Values by their place between the least and the greatest finite one, in [0, 1]; constant ones are 0."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if low == high:
        return [float(value > low) for value in values]
    return [min(max((value - low) / (high - low), 0.0), 1.0) for value in values]
