"""What a strategy is: it asks for recipes, is told how they did, and knows nothing of models.

::

    strategy ──asks──► Stage of recipes ──driver: quantize, evaluate──► Outcomes ──told──► strategy
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

from inc_torch.core.registry import Registry
from inc_torch.tuning._space import Recipe, Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

__all__ = [
    "STRATEGIES",
    "Goal",
    "Outcome",
    "PlannedStrategy",
    "Probes",
    "SampledStrategy",
    "Search",
    "Stage",
    "Stages",
    "Strategy",
]


@final
@dataclass(frozen=True, slots=True)
class Goal:
    """The accuracy that a model has to keep.

    Attributes:
        baseline: Score of the float model.
        target: The worst score that is still good enough.
        higher_is_better: Whether a greater score is a better one.
    """

    baseline: float
    target: float
    higher_is_better: bool = True

    def is_met(self, score: float) -> bool:
        """Whether a score is good enough; the target itself is, NaN is not."""
        return score >= self.target if self.higher_is_better else score <= self.target

    def rank(self, score: float) -> float:
        """A number that is greater for better scores, and the least for NaN."""
        if score != score:  # noqa: PLR0124  NaN alone differs from itself
            return float("-inf")
        return score if self.higher_is_better else -score


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one trial.

    Attributes:
        recipe: What was tried.
        score: Accuracy of the model; that of the batches so far where the trial was cut because it could not meet the
            goal any more.
        is_met: Whether the goal is met.
    """

    recipe: Recipe
    score: float
    is_met: bool


@final
@dataclass(frozen=True, slots=True)
class Stage:
    """Recipes that do not depend on each other's outcomes, so that several processes may try them at a time.

    Attributes:
        recipes: Lazy where there are many; asked for anew each time, so a list or an object that iterates afresh.
        ends_at_goal: Whether the whole search may end with a recipe of this stage that meets the goal. False where
            meeting it is where the strategy wants to go on from.
    """

    recipes: Iterable[Recipe]
    ends_at_goal: bool = True


Stages = Generator[Stage, Sequence[Outcome], None]
"""Yields stages, and is sent the outcomes of one, in its order without repetitions, before the next is asked for."""


class Probes(Protocol):
    """Measurements besides accuracy that a strategy may ask for. They cost time, and equal calls give equal answers."""

    def output_errors(self, recipe: Recipe) -> Mapping[str, float]:
        """For each operation that ``recipe`` quantizes and that runs, the normalised squared error of its output."""
        ...

    def model_errors(self, recipe: Recipe, batches: int) -> Sequence[float]:
        """The squared error of the model's output, summed over each of so many calibration batches."""
        ...

    def hessian_traces(self) -> Mapping[str, float]:
        """For each operation, the mean of the diagonal of the Hessian of the loss for its weight."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Search:
    """What a strategy knows.

    Attributes:
        space: What it may choose.
        goal: What it is after.
        probes: What it may measure.
        seed: Of its random numbers.
    """

    space: Space
    goal: Goal
    probes: Probes
    seed: int = 0


class PlannedStrategy(ABC):
    """A strategy that decides by itself what comes next. Deterministic: equal outcomes, equal recipes."""

    @abstractmethod
    def stages(self, search: Search) -> Stages:
        """Propose everything, in order.

        A recipe that was proposed before is not tried again; its outcome is told from memory. The generator may be
        closed at any time, and run again from its beginning to resume.
        """


class SampledStrategy(ABC):
    """A strategy that leaves the next recipe to a sampler of Optuna, which sees all trials so far."""

    @abstractmethod
    def sampler(self, search: Search, number: int) -> BaseSampler:
        """Return the sampler of trial ``number``, seeded by it and by the seed of the search.

        A fresh one each time, so that a search that is cut and resumed samples what the uncut one does.
        """


Strategy = PlannedStrategy | SampledStrategy

STRATEGIES: Registry[type[Strategy]] = Registry("tuning strategy", "inc_torch.tuning.strategies")
"""Strategies by name; each is called with the ``strategy_kwargs`` of the user."""
