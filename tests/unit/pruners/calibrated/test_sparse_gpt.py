"""SparseGPT on single weights: against the formula of the surgeon, closed forms, exact counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch.core.errors import CalibrationError, ConfigError
from inc_torch.pruners import parse_pattern
from inc_torch.pruners.calibrated import SparseGPT
from inc_torch.pruners.calibrated.sparse_gpt import DAMPING, STRIPE, inverse_factor
from inc_torch.pruners.patterns.block import Block
from inc_torch.pruners.patterns.n_in_m import NInM

SINGLE = Block(1, 1)


def correlated(tokens, width, rank=6):
    """Inputs that a few directions explain, and a little noise."""
    return torch.randn(tokens, rank) @ torch.randn(rank, width) + 0.3 * torch.randn(tokens, width)


def hessian_of(inputs):
    return inputs.t() @ inputs / len(inputs)


def lost(before, after, inputs):
    return float(((before - after) @ inputs.t()).square().sum())


def by_surgery(weight, hessian, pruned_at):
    """Column by column with inverses of what is left of the Hessian, in float64. ``pruned_at(j, weight)`` is a mask."""
    weight, hessian = weight.double().clone(), hessian.double()
    hessian = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        pruned = pruned_at(column, weight)
        error = torch.where(pruned, weight[:, column], 0.0) / inverse[0, 0]
        weight[:, column:] -= error[:, None] * inverse[0]
        weight[pruned, column] = 0.0
    return weight.float()


@pytest.mark.parametrize("width", [10, STRIPE + 12])
def test_the_weights_left_make_up_as_the_surgeon_says(width):
    weight, hessian = torch.randn(5, width), hessian_of(correlated(400, width))
    own = SparseGPT(SINGLE, 0.5).pruned(weight, hessian)
    expected = by_surgery(weight, hessian, lambda column, _: own[:, column] == 0)
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-3)


def test_n_in_m_chooses_from_weights_already_changed():
    weight, hessian = torch.randn(5, 12), hessian_of(correlated(400, 12))
    damped = hessian.double() + DAMPING * hessian.diagonal().mean() * torch.eye(12)
    scale = [1 / torch.linalg.inv(damped[column:, column:])[0, 0] for column in range(12)]
    chosen = {}

    def pruned_at(column, weight):
        if column % 4 == 0:
            saliency = weight[:, column : column + 4] ** 2 * torch.stack(scale[column : column + 4])
            order = saliency.argsort(1)
            for offset in range(4):
                chosen[column + offset] = (order[:, :2] == offset).any(1)
        return chosen[column]

    expected = by_surgery(weight, hessian, pruned_at)
    torch.testing.assert_close(SparseGPT(NInM(2, 4)).pruned(weight, hessian), expected, rtol=1e-3, atol=1e-4)


@given(st.integers(1, 9), st.integers(1, 20), st.floats(0, 0.99), st.integers(0, 99))
def test_inputs_of_equal_size_without_correlation_are_magnitude_pruning(rows, columns, sparsity, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    own = SparseGPT(SINGLE, sparsity).pruned(weight, 3.0 * torch.eye(columns))
    expected = weight.clone().flatten()
    expected[weight.flatten().abs().argsort()[: int(sparsity * weight.numel() + 1e-6)]] = 0
    assert torch.equal(own, expected.view_as(weight))


@pytest.mark.parametrize("pattern", ["1x1", "2:4"])
@pytest.mark.parametrize("seed", range(5))
def test_never_loses_more_than_magnitude_pruning(pattern, seed):
    torch.manual_seed(seed)
    inputs, weight = correlated(300, 32), torch.randn(16, 32)
    parsed = parse_pattern(pattern)
    by_magnitude = SparseGPT(parsed, 0.5).pruned(weight, torch.eye(32))
    own = SparseGPT(parsed, 0.5).pruned(weight, hessian_of(inputs))
    assert (own == 0).sum() == (by_magnitude == 0).sum() == weight.numel() // 2
    assert lost(weight, own, inputs) < 0.7 * lost(weight, by_magnitude, inputs)


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 2 * STRIPE + 9), st.floats(0, 0.99))
def test_counts_are_exact_over_stripes(rows, columns, sparsity):
    own = SparseGPT(SINGLE, sparsity).pruned(torch.randn(rows, columns), hessian_of(torch.randn(50, columns)))
    assert int((own == 0).sum()) == int(sparsity * rows * columns + 1e-6)


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, STRIPE + 40), st.integers(2, 9), st.data())
def test_each_group_loses_n_and_a_ragged_tail_none(rows, columns, group, data):
    pruned = data.draw(st.integers(1, group - 1))
    own = SparseGPT(NInM(pruned, group)).pruned(torch.randn(rows, columns), hessian_of(torch.randn(50, columns)))
    whole = columns // group * group
    assert bool(((own[:, :whole].reshape(rows, -1, group) == 0).sum(2) == pruned).all())
    assert bool((own[:, whole:] != 0).all())


def test_inputs_that_were_always_zero_go_first_and_no_more_than_asked():
    inputs = correlated(100, 8)
    inputs[:, [2, 5]] = 0
    weight = torch.randn(4, 8) + 100.0
    own = SparseGPT(SINGLE, 0.375).pruned(weight, hessian_of(inputs))
    assert bool((own[:, [2, 5]] == 0).all())
    assert int((own == 0).sum()) == 12
    few = SparseGPT(SINGLE, 0.125).pruned(weight, hessian_of(inputs))
    assert int((few[:, [2, 5]] == 0).sum()) == int((few == 0).sum()) == 4
    assert torch.equal(few[few != 0], weight[few != 0])  # nothing to make up for


def test_inputs_that_were_all_zero_give_exact_counts():
    own = SparseGPT(SINGLE, 0.5).pruned(torch.ones(2, 4), torch.zeros(4, 4))
    assert own.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_the_factor_is_that_of_the_inverse():
    hessian = hessian_of(correlated(200, 7))
    factor = inverse_factor(hessian)
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(7)
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(damped), rtol=1e-3, atol=1e-4)
    assert torch.equal(factor, factor.triu())


def test_a_hessian_that_is_not_positive_is_damped_more():
    hessian = torch.tensor([[1.0, 1.05], [1.05, 1.0]])  # least eigenvalue -0.05
    factor = inverse_factor(hessian)
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(hessian + 0.1 * torch.eye(2)))


def test_a_hessian_that_stays_not_positive_is_refused():
    with pytest.raises(CalibrationError) as caught:
        inverse_factor(torch.tensor([[1.0, 100.0], [100.0, 1.0]]))
    assert "(2, 2): not positive even after adding 10 of its mean diagonal 1 to" in str(caught.value)
    assert "prune with Wanda" in str(caught.value)


@pytest.mark.parametrize("pattern", [Block(4, 1), Block(None, 1)])
def test_other_patterns_are_refused(pattern):
    with pytest.raises(ConfigError, match=r"SparseGPT.pattern=Block\(.*expected 1x1 or N:M"):
        SparseGPT(pattern)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ConfigError, match=r"SparseGPT.sparsity=.*expected a number in \[0, 1\)"):
        SparseGPT(SINGLE, sparsity)
