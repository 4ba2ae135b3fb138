"""What every tuning strategy must do, in any space and whatever comes of its trials."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch.tuning._space import Recipe, Space
from inc_torch.tuning._strategy import STRATEGIES, Goal, PlannedStrategy, SampledStrategy, Search
from tests.unit.tuning.simulated import ToldErrors, drive, operation

NAMES = STRATEGIES.names()
PLANNED = [name for name in NAMES if issubclass(STRATEGIES.get(name), PlannedStrategy)]
SAMPLED = [name for name in NAMES if issubclass(STRATEGIES.get(name), SampledStrategy)]

KINDS = ["Conv2d", "Linear", "LSTM", "LayerNorm"]
LABELS = ["s:kl", "s:minmax", "d:asym", "w:rtn", "l:int4", "bf16", "fp16", "fp32"]


@st.composite
def spaces(draw, most_operations: int = 4) -> Space:
    """Operations with any choices, the default any of them; sizes, alphas and blocks or none."""
    choices = st.lists(st.sampled_from(LABELS), min_size=1, max_size=4, unique=True).map(" ".join)
    made = st.tuples(st.sampled_from(KINDS), choices)
    operations = [
        operation(f"fc{number}", *drawn) for number, drawn in enumerate(draw(st.lists(made, max_size=most_operations)))
    ]
    names = [one.name for one in operations]
    blocks = draw(st.lists(st.lists(st.sampled_from(names), min_size=1), max_size=2)) if names else []
    samples, alphas = draw(st.sampled_from([(), (8,), (8, 16)])), draw(st.sampled_from([(), (0.5,), (0.5, 0.7)]))
    return Space(tuple(operations), samples, alphas, tuple(map(tuple, blocks)))


@st.composite
def searches(draw):
    """A space, scores that look like chance but are the same for the same recipe, some of them NaN, and a goal."""
    space, salt = draw(spaces()), draw(st.integers(0, 2**16))
    goal = Goal(1.0, draw(st.sampled_from([-1.0, 0.3, 0.5, 0.9, 2.0])), higher_is_better=draw(st.booleans()))

    def number(*of: object) -> float:
        drawn = hashlib.sha256(repr((salt, *of)).encode()).digest()[0] / 255
        return math.nan if drawn < 0.05 else round(drawn, 1)

    names = [one.name for one in space.operations]
    errors = {name: number(name) for name in names}
    probes = ToldErrors(outputs=errors, traces=errors, model=lambda recipe, batch: number(recipe, batch))
    return space, number, goal, probes


def is_in(space: Space, recipe: Recipe) -> bool:
    fits = len(recipe.labels) == len(space.operations)
    known = all(
        label in [choice.label for choice in one.choices]
        for one, label in zip(space.operations, recipe.labels, strict=True)
    )
    return fits and known and recipe.samples in (space.samples or (None,)) and recipe.alpha in (space.alphas or (None,))


def test_those_of_inc_are_registered():
    assert {"auto", "basic", "conservative", "exhaustive", "random", "bayesian", "tpe", "mse"} <= set(NAMES)
    assert {"mse_v2", "hawq_v2", "auto_mixed_precision", "lower_bit"} <= set(NAMES)


def test_every_strategy_is_planned_or_sampled():
    assert sorted(PLANNED + SAMPLED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_is_built_without_arguments_and_frozen(name):
    strategy = STRATEGIES.get(name)()
    assert strategy == STRATEGIES.get(name)()
    assert hash(strategy) == hash(STRATEGIES.get(name)())
    assert dataclasses.is_dataclass(strategy)
    with pytest.raises((AttributeError, TypeError)):
        strategy.anything = 1


@pytest.mark.parametrize("ends", [True, False], ids=["ends at the goal", "goes on"])
@pytest.mark.parametrize("name", PLANNED)
@given(searches())
@settings(max_examples=40)
def test_terminates_with_recipes_of_the_space_alone(name, ends, case):
    space, scores, goal, probes = case
    driven = drive(STRATEGIES.get(name)(), space, scores, goal, probes=probes, ends=ends)
    assert driven.why in {"met", "nothing more"}
    for stage, asked in driven.stages:
        assert asked, "a stage asks for something"
        assert all(is_in(space, recipe) for recipe in asked)
        if driven.why != "met":
            assert list(stage.recipes) == asked, "a stage can be asked again"


@pytest.mark.parametrize("name", PLANNED)
@given(searches(), st.integers(0, 30))
@settings(max_examples=40)
def test_equal_outcomes_lead_to_equal_recipes_also_after_a_cut(name, case, cut):
    space, scores, goal, probes = case
    strategy = STRATEGIES.get(name)()
    whole = drive(strategy, space, scores, goal, probes=probes).recipes
    assert drive(STRATEGIES.get(name)(), space, scores, goal, probes=probes).recipes == whole
    begun = drive(strategy, space, scores, goal, probes=probes, most=cut or None).tried
    rest = drive(strategy, space, scores, goal, probes=probes, known=begun).recipes
    assert [outcome.recipe for outcome in begun] + rest == whole


@pytest.mark.parametrize("name", SAMPLED)
def test_samplers_are_fresh_and_seeded_by_trial_and_search(name):
    if name == "bayesian":
        pytest.importorskip("scipy")
    optuna = pytest.importorskip("optuna")
    strategy = STRATEGIES.get(name)()

    def first(seed: int, number: int) -> list[str]:
        search = Search(Space(()), Goal(1.0, 0.9), ToldErrors(), seed)
        study = optuna.create_study(sampler=strategy.sampler(search, number))
        trial = study.ask()
        return [trial.suggest_categorical(f"fc{place}", ["s:kl", "d:asym", "fp32"]) for place in range(12)]

    assert first(0, 1) == first(0, 1)
    assert len({tuple(first(seed, number)) for seed in range(3) for number in range(3)}) == 9
