"""Wanda and DSnoT on single weights: closed forms, exact counts, against straight loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch.core.errors import ConfigError
from inc_torch.pruners.calibrated import Wanda, dsnot, prune_wanda
from inc_torch.pruners.calibrated.dsnot import exchanged
from inc_torch.pruners.calibrated.wanda import smallest_shares
from inc_torch.pruners.patterns.block import Block
from inc_torch.pruners.patterns.n_in_m import NInM
from tests.unit.pruners.calibrated.models import random_batches, random_chain


def pruned_by(technique, weight, inputs):
    seen = technique.watch(weight.shape[1], weight.device)
    seen.add(inputs)
    return technique.pruned(weight, seen)


@given(st.integers(1, 8), st.integers(1, 30), st.floats(0, 0.99))
def test_inputs_of_equal_size_are_magnitude_pruning_by_row(rows, columns, sparsity):
    weight = torch.randn(rows, columns)
    pruned = pruned_by(Wanda(sparsity), weight, torch.ones(3, columns))
    count = int(sparsity * columns + 1e-6)
    for row, is_pruned in zip(weight.abs(), pruned, strict=True):
        assert is_pruned.nonzero().flatten().tolist() == sorted(row.argsort()[:count].tolist())


def test_large_inputs_keep_small_weights():
    pruned = pruned_by(Wanda(0.5), torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]]))
    assert pruned.tolist() == [[False, True]]


def test_of_equal_metrics_the_first_goes_first():
    pruned = pruned_by(Wanda(0.25), torch.ones(3, 4000), torch.ones(1, 4000))
    assert pruned.tolist() == [[True] * 1000 + [False] * 3000] * 3
    pruned = pruned_by(Wanda(0.5, NInM(3, 8)), torch.ones(2, 16), torch.ones(1, 16))
    assert pruned.tolist() == [([True] * 3 + [False] * 5) * 2] * 2


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(2, 8), st.booleans(), st.data())
def test_each_group_loses_n_and_a_ragged_tail_none(rows, columns, group, exchanges, data):
    count = data.draw(st.integers(1, group - 1))
    technique = Wanda(0.1, NInM(count, group), exchanges=exchanges)
    pruned = pruned_by(technique, torch.randn(rows, columns), torch.randn(2, 4, columns))
    whole = columns // group * group
    assert bool((pruned[:, :whole].reshape(rows, -1, group).sum(2) == count).all())
    assert not bool(pruned[:, whole:].any())


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 40), st.floats(0, 0.99))
def test_exchanges_keep_the_count_of_each_row(rows, columns, sparsity):
    pruned = pruned_by(Wanda(sparsity, exchanges=True), torch.randn(rows, columns), torch.randn(2, 4, columns) + 0.5)
    assert bool((pruned.sum(1) == int(sparsity * columns + 1e-6)).all())


def exchanged_by_hand(pruned, metric, effect, variances, group):
    """The rule, row by row, in plain words."""
    result = pruned.clone()
    for row in range(len(pruned)):
        error = float(effect[row][pruned[row]].sum())
        is_new = [True] * pruned.shape[1]
        for _ in range(100):
            if abs(error) <= 0.1:
                break
            sign = 1 if error > 0 else -1
            back = [j for j in range(len(is_new)) if pruned[row, j] and is_new[j] and effect[row, j] * sign > 0]
            gone = [j for j in range(len(is_new)) if not pruned[row, j] and is_new[j] and effect[row, j] * sign < 0]
            if not back or (group is None and not gone):
                break
            first = max(back, key=lambda j: abs(float(effect[row, j] / variances[j])))
            is_new[first] = False
            gone = [j for j in gone if group is None or j // group == first // group]
            if gone:
                last = min(gone, key=lambda j: float(metric[row, j]))
                is_new[last] = False
                result[row, first], result[row, last] = False, True
                error += float(effect[row, last] - effect[row, first])
    return result


@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("seed", range(4))
def test_exchanges_follow_the_rule(group, seed):
    torch.manual_seed(seed)
    effect, metric, variances = torch.randn(6, 24), torch.rand(6, 24), torch.rand(24) + 0.1
    pattern = None if group is None else NInM(2, group)
    pruned = metric.view(6, -1, group or 24).argsort(2).argsort(2).lt((group or 24) // 2).view(6, 24)
    own = exchanged(pruned, metric, effect, variances, pattern)
    assert not torch.equal(own, pruned)
    assert torch.equal(own, exchanged_by_hand(pruned, metric, effect, variances, group))


def test_exchanges_are_the_same_a_few_rows_at_a_time(monkeypatch):
    effect, metric, variances = torch.randn(7, 24), torch.rand(7, 24), torch.rand(24)
    pruned = metric < metric.median(1, keepdim=True).values
    at_once = exchanged(pruned, metric, effect, variances)
    monkeypatch.setattr(dsnot, "AT_ONCE", 50)
    assert torch.equal(exchanged(pruned, metric, effect, variances), at_once)


def test_exchanges_leave_rows_of_small_error_and_dead_inputs_alone():
    pruned = torch.tensor([[True, False], [True, False]])
    effect = torch.tensor([[0.05, -1.0], [0.0, -1.0]])
    assert torch.equal(exchanged(pruned, effect.abs(), effect, torch.tensor([0.0, 1.0])), pruned)


@given(st.integers(1, 6), st.integers(1, 30), st.floats(0, 0.99))
def test_rows_of_different_counts_have_the_exact_count_in_all(rows, columns, sparsity):
    pruned = pruned_by(Wanda(sparsity, is_varied=True), torch.randn(rows, columns), torch.randn(5, columns))
    assert int(pruned.sum()) == int(sparsity * rows * columns + 1e-6)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.7])
def test_rows_of_different_counts_are_what_bisection_finds(sparsity):
    metric = torch.rand(20, 50).double() ** 3
    count = int(sparsity * metric.numel())
    ordered = metric.sort(1).values
    running, low, high = ordered.cumsum(1), 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        reached = (running <= share * running[:, -1:]).sum(1)
        low, high = (low, share) if reached.sum() > count else (share, high)
    reached = (running <= low * running[:, -1:]).sum(1)
    assert reached.sum() == count
    assert smallest_shares(metric, count).sum(1).tolist() == reached.tolist()
    assert len(set(reached.tolist())) > 1


def test_a_row_of_zeros_goes_first():
    assert smallest_shares(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), 2).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("options", [{"prune_n": 1, "prune_m": 4}, {"dsnot": True}])
def test_the_variant_has_no_effect_on_what_has_fixed_counts(options):
    torch.manual_seed(1)
    one, other, batches = random_chain(8, 8), random_chain(8, 8), random_batches()
    other.load_state_dict(one.state_dict())
    prune_wanda(one, batches, 0.5, use_variant=True, **options)
    prune_wanda(other, batches, 0.5, **options)
    assert torch.equal(one.blocks[0].lin.weight, other.blocks[0].lin.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity_ratio": 1.0}, r"prune_wanda.sparsity_ratio=1.0: expected a number in \[0, 1\)"),
        (
            {"sparsity_ratio": 0.5, "prune_n": 4, "prune_m": 4},
            "prune_wanda.prune_n=4: expected 0 < prune_n < prune_m=4",
        ),
        ({"sparsity_ratio": 0.5, "prune_m": 4}, "prune_wanda.prune_n=0: expected 0 < prune_n < prune_m=4"),
        ({"sparsity_ratio": 0.5, "nsamples": 0}, "nsamples=0: expected an integer of 1 or more"),
        ({"sparsity_ratio": 0.5, "device": "nowhere"}, "device='nowhere': expected a device"),
    ],
)
def test_wrong_arguments(arguments, message):
    model = random_chain(8, 8)
    with pytest.raises(ConfigError, match=message):
        prune_wanda(model, random_batches(), **arguments)
    assert bool((model.blocks[0].lin.weight != 0).all())


def test_other_patterns_are_refused():
    with pytest.raises(ConfigError, match=r"Wanda.pattern=Block\(rows=4, columns=1\): expected 1x1 or N:M"):
        Wanda(0.5, Block(4, 1))
