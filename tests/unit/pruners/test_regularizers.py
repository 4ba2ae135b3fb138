"""Regularizers, and scores in half their memory."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inc_torch import WeightPruningConfig
from inc_torch.core.errors import StateError
from inc_torch.pruners import REGULARIZERS, Pruner
from inc_torch.training import prepare_compression
from tests.unit.pruners.make import backward, mlp, spec_of, stack
from tests.unit.pruners.vectors import pruners_of


@given(st.lists(st.floats(0, 100, width=32), min_size=1), st.floats(0, 10, width=32))
def test_group_lasso_shortens_by_a_constant_and_lets_nothing_grow(norms, strength):
    norms = torch.tensor(norms)
    factors = REGULARIZERS.get("group_lasso")(strength).factors(norms)
    assert ((factors >= 0) & (factors <= 1)).all()
    torch.testing.assert_close(norms * factors, (norms - strength).clamp(min=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
@pytest.mark.parametrize(("pattern", "norm_of"), [
    ("2x1", lambda weight: weight.view(4, 2, 6).norm(dim=1)),
    ("1x3", lambda weight: weight.view(8, 2, 3).norm(dim=2)),
    ("1xchannel", lambda weight: weight.norm(dim=1)),
    ("1x1", torch.Tensor.abs),
])  # fmt: skip
def test_every_unit_loses_the_same_of_its_norm(pattern, norm_of, reduction):
    torch.manual_seed(0)
    layer = nn.Linear(6, 8)
    lasso = REGULARIZERS.get("group_lasso")(0.05)
    pruner = Pruner(spec_of(pattern, end=3, regularizer=lasso, reduction=reduction, target=0.0), model := stack(layer))
    before = layer.weight.detach().clone()
    pruner.begin_step(0)
    pruner.regularize_weights()
    assert model[0] is layer
    expected = (norm_of(before) - 0.05).clamp(min=0)
    torch.testing.assert_close(norm_of(layer.weight.detach()), expected, rtol=1e-4, atol=1e-6)
    assert (layer.weight * before >= 0).all()


@pytest.mark.parametrize("step", [0, 5])
def test_outside_the_window_weights_are_left_alone(step):
    layer = nn.Linear(4, 4)
    lasso = REGULARIZERS.get("group_lasso")(0.05)
    pruner = Pruner(spec_of(start=1, end=4, regularizer=lasso), stack(layer))
    before = layer.weight.detach().clone()
    pruner.begin_step(step)
    pruner.regularize_weights()
    assert torch.equal(layer.weight, before)


def test_blocks_without_use_go_to_zero_by_the_hooks_alone():
    """Columns of inputs that are always zero have no gradient, and are shortened at each step."""
    torch.manual_seed(0)
    model = stack(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    config = WeightPruningConfig(
        target_sparsity=0.0, pruning_type="magnitude", pattern="channelx1", op_names="0", start_step=0, end_step=100,
        reg_type="group_lasso", reg_coeff=0.02,
    )  # fmt: skip
    manager, optimizer = prepare_compression(model, config), torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, labels = torch.randn(64, 4), torch.randint(2, (64,))
    inputs[:, 2] = 0
    manager.on_train_begin()
    for step in range(100):
        manager.on_step_begin(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
    norms = model[0].weight.detach().norm(dim=0)
    assert norms[2] == 0
    assert torch.isfinite(norms).all()
    manager.on_train_end()


# ------------------------------------------------------------------------------------------- short scores


def scores_of(model: nn.Module, *, short: bool, steps: int = 12) -> Pruner:
    torch.manual_seed(1)
    config = WeightPruningConfig(start_step=1, end_step=20, low_memory_usage=short, pruning_frequency=4)
    (pruner,) = pruners_of(prepare_compression(model, config))
    for step in range(steps):
        pruner.begin_step(step)
        backward(model)
        pruner.collect_scores()
    return pruner


def test_short_scores_are_near_the_long_ones_in_half_the_memory():
    model = mlp()
    long, short = (scores_of(copy.deepcopy(model), short=short, steps=5) for short in (False, True))
    for name, score in short.scores.items():
        assert score.dtype == torch.bfloat16
        torch.testing.assert_close(score.float(), long.scores[name], rtol=0.03, atol=1e-6)


def test_masks_of_short_scores_have_the_sparsity_asked_for():
    assert scores_of(mlp(), short=True, steps=18).sparsity == pytest.approx(0.9, abs=1 / 64)


def test_short_scores_are_saved_and_a_run_with_long_ones_refuses_them():
    saved = scores_of(mlp(), short=True).state_dict()
    again = scores_of(mlp(), short=True, steps=1)
    again.load_state_dict(saved)
    for name, score in again.scores.items():
        assert torch.equal(score, saved["scores"][f"{name}.weight"].view_as(score))
    with pytest.raises(StateError, match=r"has dtype torch\.bfloat16; this run needs torch\.float32"):
        scores_of(mlp(), short=False, steps=1).load_state_dict(saved)
