"""The moving range of inputs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from inc_torch.quantizers._observer import InputRange


def test_first_batch_is_taken_whole_and_zero_is_included():
    seen = InputRange()
    seen.observe(torch.tensor([1.0, 3.0]))
    assert (seen.low, seen.high, seen.batches) == (0.0, 3.0, 1)
    other = InputRange()
    other.observe(torch.tensor([-1.0, -3.0]))
    assert (other.low, other.high) == (-3.0, 0.0)


def test_plain_mean_of_the_first_twenty_batches():
    seen = InputRange()
    for number in range(1, 21):
        seen.observe(torch.tensor([-2.0 * number, float(number)]))
    assert seen.high == pytest.approx(10.5)
    assert seen.low == pytest.approx(-21.0)


def test_exponential_average_afterwards():
    seen = InputRange(low=0.0, high=1.0, batches=20)
    for _ in range(3):
        seen.observe(torch.tensor([2.0]))
    assert seen.high == pytest.approx(2 - 0.95**3)


def test_range_follows_growing_activations():
    seen = InputRange()
    highs = []
    for step in range(200):
        seen.observe(torch.tensor([1.0 + 0.1 * step]))
        highs.append(seen.high)
    assert all(later > earlier for earlier, later in pairwise(highs))
    lag = (1.0 + 0.1 * 199) - seen.high
    assert lag == pytest.approx(0.1 * (1 / 0.05 - 1), rel=0.05)  # an average of rate r lags 1/r - 1 steps


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_batches_that_are_not_finite_are_left_out(bad):
    seen = InputRange(-1.0, 1.0, 5)
    seen.observe(torch.tensor([0.5, bad]))
    assert seen == InputRange(-1.0, 1.0, 5)


def test_empty_batches_are_left_out():
    seen = InputRange()
    seen.observe(torch.empty(0, 4))
    assert seen == InputRange()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    seen = InputRange()
    seen.observe(torch.tensor([-0.5, 2.0], dtype=dtype, requires_grad=True))
    assert (seen.low, seen.high) == (-0.5, 2.0)
