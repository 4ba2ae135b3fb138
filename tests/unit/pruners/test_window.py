"""When masks change, and how much is asked for."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inc_torch.pruners import SCHEDULES, Limits, PruningWindow
from tests.unit.pruners.make import spec_of

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "distillation.json").read_text(encoding="utf-8"))


def asked(steps: int = 14, initial: float = 0.0, **options: object) -> dict[int, float]:
    window = PruningWindow(spec_of(**options))
    ratios = {step: window.ratio_at(step, initial) for step in range(steps)}
    return {step: ratio for step, ratio in ratios.items() if ratio is not None}


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [("linear", 0.4), ("exp", 1 - 0.2**0.5), ("cos", 0.8 * (1 - 0.5**0.5)), ("cube", 0.1)],
)
def test_halfway_of_a_target_of_80_percent(schedule, middle):
    ratios = asked(schedule=schedule, target=0.8, start=2, end=10, frequency=4)
    assert list(ratios) == [2, 6, 10]
    assert list(ratios.values()) == pytest.approx([0.0, middle, 0.8])


def test_one_shot_goes_straight_to_the_target():
    assert asked(target=0.7, start=3, end=3) == {3: 0.7}
    assert asked(target=0.7, start=3, end=3, frequency=100) == {3: 0.7}


def test_a_window_shorter_than_the_frequency_is_one_shot():
    assert asked(target=0.7, start=3, end=6, frequency=5) == {3: 0.7}


def test_the_cap_of_layers_is_the_goal_except_at_one_shot():
    limits = Limits(0.0, 0.5)
    assert asked(target=0.7, start=0, end=4, frequency=2, limits=limits) == {0: 0.0, 2: 0.25, 4: 0.5}
    assert asked(target=0.7, start=3, end=6, frequency=5, limits=limits) == {3: 0.5}
    assert asked(target=0.7, start=3, end=3, limits=limits) == {3: 0.7}  # allocation caps it, as in INC


def test_starts_from_what_is_zero_already():
    assert asked(initial=0.2, target=0.6, start=0, end=2) == {0: 0.2, 1: pytest.approx(0.4), 2: pytest.approx(0.6)}


def test_more_zeros_than_the_target_ask_for_the_target():
    assert list(asked(initial=0.9, target=0.6, start=0, end=2).values()) == pytest.approx([0.6, 0.6, 0.6])


@given(
    schedule=st.sampled_from(SCHEDULES.names()),
    start=st.integers(0, 20),
    length=st.integers(0, 60),
    frequency=st.integers(1, 25),
    target=st.floats(0.0, 0.99),
    greatest=st.floats(0.01, 0.99),
    initial=st.floats(0.0, 1.0),
)
def test_any_window(schedule, start, length, frequency, target, greatest, initial):
    spec = spec_of(
        schedule=schedule,
        start=start,
        end=start + length,
        frequency=frequency,
        target=target,
        limits=Limits(0.0, greatest),
    )
    window = PruningWindow(spec)
    ratios = {step: window.ratio_at(step, initial) for step in range(start + length + 5)}
    updates = [step for step, ratio in ratios.items() if ratio is not None]
    expected = list(range(start, start + length + 1, frequency)) if length >= frequency else [start]
    assert updates == expected
    assert window.updates == max(1, len(expected) - 1)
    values = [ratios[step] for step in updates]
    assert all(0.0 <= value <= target for value in values)
    assert all(late >= early - 1e-12 for early, late in itertools.pairwise(values))
    goal = target if length == 0 else min(target, greatest)
    assert values[-1] == pytest.approx(goal, abs=1e-12)
    assert window.goal == min(target, greatest)


# -------------------------------------------------------------------------------------- epochs


def epochs(**options: object) -> dict[int, float]:
    return asked(8, counts_epochs=True, **options)


@pytest.mark.parametrize("case", VECTORS["legacy_1x_schedule"], ids=lambda case: case["id"])
def test_epochs_grow_as_with_1x(case):
    """Where its frequency is a number of whole epochs; a part of one counts as one."""
    told = case["global"] | case["pruner"]
    start, end = told["start_epoch"], told["end_epoch"]
    frequency = max(1, round(told.get("update_frequency", 1)))
    options = {"target": told["target_sparsity"], "initial": told["initial_sparsity"]}
    ratios = epochs(start=start, end=end, frequency=frequency, **options)
    expected = case["expected_sparsity_by_epoch"]
    if case["id"] == "ls04":  # 0.1 of an epoch, where 1.X does not reach the target in its last one
        expected = [0.97 / 3, 0.97 * 2 / 3, 0.97]
    for epoch, ratio in ratios.items():
        assert ratio == pytest.approx(expected[epoch])
    assert ratios[max(ratios)] == pytest.approx(told["target_sparsity"])


def test_the_first_epoch_prunes_already():
    assert epochs(target=0.8, start=0, end=3) == pytest.approx({0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8})


def test_a_frequency_that_does_not_divide_the_epochs_reaches_the_target_before_they_end():
    assert epochs(target=0.6, start=0, end=4, frequency=2) == pytest.approx({1: 0.3, 3: 0.6})


def test_one_epoch_goes_straight_to_the_target():
    assert epochs(target=0.6, start=2, end=2, frequency=5) == {2: 0.6}


def test_the_last_update_of_epochs():
    assert PruningWindow(spec_of(start=0, end=4, frequency=2, counts_epochs=True)).last_update == 3
    assert PruningWindow(spec_of(start=1, end=3, frequency=1, counts_epochs=True)).last_update == 3


def test_a_schedule_begins_with_the_initial_sparsity_that_is_asked_for():
    options = {"schedule": "linear", "target": 0.8, "start": 0, "end": 2}
    assert asked(initial=0.0, **options) == pytest.approx({0: 0.0, 1: 0.4, 2: 0.8})
    window = PruningWindow(dataclasses.replace(spec_of(**options), initial=0.4))
    assert [window.ratio_at(step) for step in range(3)] == pytest.approx([0.4, 0.6, 0.8])
