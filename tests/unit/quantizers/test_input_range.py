"""The moving range of inputs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from inc_torch.core.ranks import Ranks
from inc_torch.quantizers._input_range import InputRange, fold_pending

CPU = torch.device("cpu")


def step(seen, *batches):
    """Let one optimizer step see ``batches``."""
    for batch in batches:
        seen.observe(torch.as_tensor(batch))
    fold_pending([seen], Ranks(), CPU)


def test_first_step_is_taken_whole_and_zero_is_included():
    seen = InputRange()
    step(seen, [1.0, 3.0])
    assert seen == InputRange(0.0, 3.0, 1)
    other = InputRange()
    step(other, [-1.0, -3.0])
    assert other == InputRange(-3.0, 0.0, 1)


def test_nothing_changes_before_the_fold():
    seen = InputRange(-1.0, 1.0, 4)
    seen.observe(torch.tensor([9.0]))
    assert seen == InputRange(-1.0, 1.0, 4)
    assert seen.pending.tolist() == [-9.0, 9.0]


def test_plain_mean_of_the_first_twenty_steps():
    seen = InputRange()
    for number in range(1, 21):
        step(seen, [-2.0 * number, float(number)])
    assert seen.high == pytest.approx(10.5)
    assert seen.low == pytest.approx(-21.0)


def test_exponential_average_afterwards():
    seen = InputRange(low=0.0, high=1.0, steps=20)
    for _ in range(3):
        step(seen, [2.0])
    assert seen.high == pytest.approx(2 - 0.95**3)


def test_range_follows_growing_activations():
    seen = InputRange()
    highs = []
    for number in range(200):
        step(seen, [1.0 + 0.1 * number])
        highs.append(seen.high)
    assert all(later > earlier for earlier, later in pairwise(highs))
    lag = (1.0 + 0.1 * 199) - seen.high
    assert lag == pytest.approx(0.1 * (1 / 0.05 - 1), rel=0.05)  # an average of rate r lags 1/r - 1 steps


def test_micro_batches_of_a_step_count_as_one_batch():
    rows = torch.randn(8, 5)
    whole, parts = InputRange(-0.1, 0.1, 3), InputRange(-0.1, 0.1, 3)
    step(whole, rows)
    step(parts, *rows.split(2))
    assert parts == whole == InputRange(whole.low, whole.high, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_step_with_a_batch_that_is_not_finite_is_left_out(bad, position):
    seen = InputRange(-1.0, 1.0, 5)
    batches = [[0.5, 3.0], [-2.0, 7.0], [1.0, 1.0]]
    batches[position][1] = bad
    step(seen, *batches)
    assert seen == InputRange(-1.0, 1.0, 5)
    step(seen, [-1.0, 7.0])
    assert seen == InputRange(-1.0, 2.0, 6)


def test_empty_batches_are_left_out():
    seen = InputRange()
    step(seen, torch.empty(0, 4))
    step(seen)
    assert seen == InputRange()
    step(seen, torch.empty(0, 4), [3.0], torch.empty(0, 4))
    assert seen == InputRange(0.0, 3.0, 1)


def test_inputs_of_a_model_are_folded_together_and_each_for_itself():
    model = [InputRange(), InputRange(0.0, 4.0, 1), InputRange()]
    model[0].observe(torch.tensor([-1.0]))
    model[2].observe(torch.tensor([math.inf]))
    fold_pending(model, Ranks(), CPU)
    assert model == [InputRange(-1.0, 0.0, 1), InputRange(0.0, 4.0, 1), InputRange()]
    fold_pending([], Ranks(), CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    seen = InputRange()
    step(seen, torch.tensor([-0.5, 2.0], dtype=dtype, requires_grad=True))
    assert seen == InputRange(-0.5, 2.0, 1)


def test_what_is_noted_holds_no_graph():
    seen = InputRange()
    for _ in range(2):
        seen.observe(torch.tensor([1.0], requires_grad=True) * 2)
    assert not seen.pending.requires_grad
