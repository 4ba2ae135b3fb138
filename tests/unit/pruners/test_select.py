"""Exact selection of the smallest values, against sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inc_torch.pruners._select import count_of, keep_largest, smallest

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@st.composite
def values_and_count(draw):
    """Few distinct values, so that nearly every draw has ties, and a count of 1 to all."""
    values = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 1.5, 2.0, 3.0, 1e4]), min_size=1, max_size=40))
    return torch.tensor(values), draw(st.integers(1, len(values)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(values_and_count())
def test_smallest_is_what_sorting_finds(dtype, case):
    values, count = case[0].to(dtype), case[1]
    before = values.clone()
    found = smallest(values, count)
    assert found.shape == ()
    assert found.dtype == dtype
    assert found == values.sort().values[count - 1] == torch.kthvalue(values, count).values
    assert torch.equal(values, before)


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=60), st.data())
def test_smallest_of_any_floats(values, data):
    count = data.draw(st.integers(1, len(values)))
    assert smallest(torch.tensor(values), count).item() == sorted(values)[count - 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(values_and_count())
def test_exactly_as_many_go_and_the_first_of_equal_ones(dtype, case):
    values, count = case[0].to(dtype), case[1]
    before = values.clone()
    gone = values.argsort(stable=True)[:count]
    expected = torch.ones(len(values), dtype=torch.bool).index_fill(0, gone, value=False)
    assert torch.equal(keep_largest(values, count), expected)
    assert torch.equal(values, before)


@pytest.mark.parametrize("pruned", [0, -1])
def test_nothing_to_prune_keeps_all(pruned):
    assert keep_largest(torch.zeros(3), pruned).tolist() == [True] * 3


def test_everything_goes():
    assert keep_largest(torch.ones(3), 3).tolist() == [False] * 3


def test_negative_zero_ties_with_zero():
    assert keep_largest(torch.tensor([0.0, -0.0, 0.0, 1.0]), 2).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("ratio", "units", "count"),
    [
        (0.57, 100, 57),  # 56.99999999999999 in floating point
        (0.29, 100, 29),
        (0.1 + 0.2, 10, 3),
        (1 - 0.9, 10, 1),
        (0.5, 3, 1),
        (0.9999, 100, 99),
        (0.0, 7, 0),
        (1.0, 7, 7),
        (1.2, 7, 7),  # no more than there are
        (0.33333, 3, 0),
    ],
)
def test_count_is_the_floor_with_rounding_forgiven(ratio, units, count):
    assert count_of(ratio, units) == count


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_count_of_a_fraction_is_its_numerator(part, whole):
    assert count_of(min(part, whole) / whole, whole) == min(part, whole)
