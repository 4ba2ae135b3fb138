"""Searches without models: spaces in short, a driver that is told the scores, probes that are told the errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from inc_torch.tuning._space import Choice, Mode, Operation, Recipe, Space
from inc_torch.tuning._strategy import Goal, Outcome, PlannedStrategy, Search, Stage

MODES = {"s": Mode.STATIC, "d": Mode.DYNAMIC, "w": Mode.WEIGHT_ONLY, "l": Mode.LOWER}
FLOATS = {mode.value: mode for mode in (Mode.BFLOAT16, Mode.FLOAT16, Mode.FLOAT32)}
STATIC = "s:asym/kl s:asym/minmax s:sym/kl s:sym/minmax"
NEVER = Goal(baseline=1.0, target=2.0)
ALWAYS = Goal(baseline=1.0, target=-1.0)


def operation(name: str, kind: str, labels: str) -> Operation:
    """An operation in the words of vectors: ``s:`` static, ``d:`` dynamic; also ``w:`` weights, ``l:`` lower bits."""
    choices = (Choice(label, FLOATS.get(label) or MODES[label.partition(":")[0]]) for label in labels.split())
    return Operation(name, kind, tuple(choices))


def linears(labels: str, *names: str) -> tuple[Operation, ...]:
    return tuple(operation(name, "Linear", labels) for name in names)


@dataclass
class ToldErrors:
    """Probes; those without a number answer 0. Keeps what it was asked for."""

    outputs: Mapping[str, float] = field(default_factory=dict)
    traces: Mapping[str, float] = field(default_factory=dict)
    model: Callable[[Recipe, int], float] = lambda recipe, batch: 0.0
    space: Space = field(default_factory=lambda: Space(()))
    asked: list[object] = field(default_factory=list)

    def output_errors(self, recipe: Recipe) -> Mapping[str, float]:
        self.asked.append(recipe)
        quantized = self.space.in_modes(recipe, Mode.STATIC, Mode.DYNAMIC, Mode.WEIGHT_ONLY)
        return {one.name: self.outputs.get(one.name, 0.0) for one in quantized}

    def model_errors(self, recipe: Recipe, batches: int) -> Sequence[float]:
        self.asked.append((recipe, batches))
        return [self.model(recipe, batch) for batch in range(batches)]

    def hessian_traces(self) -> Mapping[str, float]:
        self.asked.append("traces")
        return {one.name: self.traces.get(one.name, 0.0) for one in self.space.operations}


@dataclass
class Driven:
    """What a driver saw: outcomes of trials in their order, stages with the recipes that were asked for."""

    tried: list[Outcome] = field(default_factory=list)
    stages: list[tuple[Stage, list[Recipe]]] = field(default_factory=list)
    why: str = "nothing more"

    @property
    def labels(self) -> list[str]:
        return [" ".join(outcome.recipe.labels) for outcome in self.tried]

    @property
    def recipes(self) -> list[Recipe]:
        return [outcome.recipe for outcome in self.tried]

    @property
    def last_met(self) -> Recipe | None:
        return next((outcome.recipe for outcome in reversed(self.tried) if outcome.is_met), None)


def drive(
    strategy: PlannedStrategy,
    space: Space,
    scores: Iterable[float] | Callable[[Recipe], float],
    goal: Goal = NEVER,
    *,
    probes: ToldErrors | None = None,
    most: int | None = None,
    ends: bool = True,
    known: Sequence[Outcome] = (),
) -> Driven:
    """Try what the strategy asks for.

    Args:
        strategy: Who asks.
        space: What there is to choose.
        scores: Of the trials in their order, or of recipes.
        goal: What is asked for.
        probes: What is measured besides.
        most: Greatest number of trials.
        ends: Whether the goal ends the search.
        known: Outcomes of an earlier run, which take no trial.
    """
    told = probes or ToldErrors()
    told.space = space
    numbers = None if callable(scores) else iter(scores)
    memory = {outcome.recipe: outcome for outcome in known}
    driven = Driven()
    plan = strategy.stages(Search(space, goal, told))
    answer: list[Outcome] | None = None
    while True:
        try:
            stage = next(plan) if answer is None else plan.send(answer)
        except StopIteration:
            return driven
        asked: list[Recipe] = []
        driven.stages.append((stage, asked))
        outcomes = {}
        for recipe in stage.recipes:
            asked.append(recipe)
            if recipe not in memory:
                score = scores(recipe) if numbers is None else next(numbers)
                memory[recipe] = Outcome(recipe, score, goal.is_met(score))
                driven.tried.append(memory[recipe])
            outcomes[recipe] = memory[recipe]
            if ends and stage.ends_at_goal and memory[recipe].is_met:
                driven.why = "met"
                return driven
            if len(driven.tried) == most:
                driven.why = "spent"
                return driven
        answer = list(outcomes.values())
