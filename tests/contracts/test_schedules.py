"""What every sparsity schedule must do."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inc_torch.pruners import SCHEDULES

TOLERANCE = 1e-12
NAMES = SCHEDULES.names()


@st.composite
def windows(draw):
    """Initial and target sparsity in [0, 1), in order."""
    return sorted(draw(st.tuples(*[st.floats(0.0, 0.999)] * 2)))


@pytest.fixture(params=NAMES)
def schedule(request):
    return SCHEDULES.get(request.param)()


def test_those_of_inc_are_registered():
    assert {"exp", "cos", "linear", "cube"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(windows())
def test_starts_at_initial_and_ends_at_target(name, window):
    initial, target = window
    schedule = SCHEDULES.get(name)()
    assert schedule.sparsity(0.0, target, initial) == pytest.approx(initial, abs=TOLERANCE)
    assert schedule.sparsity(1.0, target, initial) == pytest.approx(target, abs=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
@given(windows(), st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)))
def test_is_monotone_and_within_bounds(name, window, moments):
    initial, target = window
    schedule = SCHEDULES.get(name)()
    early, late = (schedule.sparsity(moment, target, initial) for moment in sorted(moments))
    assert initial - TOLERANCE <= early <= late + TOLERANCE
    assert late <= target + TOLERANCE


def test_initial_is_zero_unless_given(schedule):
    assert schedule.sparsity(0.0, 0.8) == pytest.approx(0.0, abs=TOLERANCE)
    assert schedule.sparsity(0.5, 0.8) == schedule.sparsity(0.5, 0.8, 0.0)


def test_really_moves(schedule):
    values = [schedule.sparsity(step / 10, 0.9, 0.1) for step in range(11)]
    assert all(after - before > 1e-4 for before, after in itertools.pairwise(values))


def test_equal_configurations_are_equal(schedule):
    assert schedule == type(schedule)()
    assert hash(schedule) == hash(type(schedule)())
