"""Masks that change as an epoch begins."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.core.errors import ConfigError, InexactWarning
from tests.unit.pruners.make import mlp

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "distillation.json").read_text(encoding="utf-8"))


def by_epoch(**options: object) -> WeightPruningConfig:
    defaults = {"pruning_type": "magnitude", "pattern": "1x1", "clock": "epoch", "sparsity_decay_type": "linear"}
    return WeightPruningConfig(**(defaults | options))


def step(manager, model, optimizer) -> None:
    manager.on_step_begin(0)
    model(torch.randn(4, 8)).square().mean().backward()
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()
    optimizer.zero_grad()
    manager.on_step_end()


@pytest.mark.parametrize("steps", [1, 3])
def test_sparsity_grows_from_epoch_to_epoch_however_many_steps_they_have(steps):
    model = mlp()
    manager = prepare_compression(model, by_epoch(target_sparsity=0.8, start_step=1, end_step=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    manager.on_train_begin()
    reached = []
    for epoch in range(4):
        manager.on_epoch_begin(epoch)
        for _ in range(steps):
            step(manager, model, optimizer)
            reached.append(manager.metrics()["sparsity"])
            zeros = int((model[0].weight == 0).sum() + (model[2].weight == 0).sum())
            assert zeros == round(reached[-1] * 256)
        manager.on_epoch_end()
    manager.on_train_end()
    assert reached == pytest.approx([share for share in (0.0, 0.4, 0.8, 0.8) for _ in range(steps)], abs=1 / 256)
    assert manager.has_reached_goal()


def test_weights_are_masked_as_the_epoch_begins():
    model = mlp()
    manager = prepare_compression(model, by_epoch(target_sparsity=0.5))
    manager.on_train_begin()
    manager.on_epoch_begin(0)
    assert int((model[0].weight == 0).sum() + (model[2].weight == 0).sum()) == 128
    manager.callbacks.give_up()


@pytest.mark.parametrize("case", VECTORS["legacy_1x_magnitude"], ids=lambda case: case["id"])
def test_the_units_of_1x_are_pruned_but_for_the_one_too_many(case):
    """1.X prunes the threshold itself too, so one unit more than was asked for."""
    weight = torch.tensor(case["weight"]["data"]).reshape(case["weight"]["shape"])
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU())
    model[0].weight.data = weight.clone()
    pattern = case["pattern"].removeprefix("tile_pattern_")
    manager = prepare_compression(model, by_epoch(target_sparsity=case["target_sparsity"], pattern=pattern))
    manager.on_train_begin()
    manager.on_epoch_begin(0)
    manager.callbacks.give_up()
    theirs = torch.tensor(case["expected_weight"]["data"]).reshape(weight.shape) == 0
    ours = model[0].weight == 0
    unit = int(pattern.partition("x")[2])
    assert not (ours & ~theirs).any()
    assert int(theirs.sum() - ours.sum()) == unit
    assert int(ours.sum()) == int(case["target_sparsity"] * weight.numel() / unit) * unit


def test_weights_that_come_back_with_an_epoch_have_no_momentum_and_nothing_is_cleared_in_between():
    model = mlp()
    manager = prepare_compression(model, by_epoch(target_sparsity=0.8, end_step=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    manager.on_train_begin()
    manager.on_epoch_begin(0)
    step(manager, model, optimizer)
    pruned = model[0].weight == 0
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    assert momentum[pruned].abs().sum() > 0  # of no effect, as the weights are masked
    manager.on_epoch_begin(1)
    assert momentum[pruned].abs().sum() == 0
    assert momentum[~pruned].abs().sum() > 0
    manager.callbacks.give_up()


def test_a_criterion_of_gradients_waits_for_the_first_step():
    model = mlp()
    manager = prepare_compression(model, by_epoch(target_sparsity=0.5, pruning_type="snip"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    manager.on_epoch_begin(0)
    assert manager.metrics()["sparsity"] == 0.0
    step(manager, model, optimizer)
    assert manager.metrics()["sparsity"] == 0.5
    manager.on_train_end()


def test_a_run_goes_on_in_the_middle_of_an_epoch():
    torch.manual_seed(0)
    config = by_epoch(target_sparsity=0.75, end_step=2)
    weights = mlp().state_dict()

    def begun(state=None):
        model = mlp()
        model.load_state_dict(weights if state is None else state["model"])
        manager = prepare_compression(model, config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            manager.load_state_dict(state["manager"])
        manager.on_train_begin()
        return model, manager, optimizer

    def finish(model, manager, optimizer):
        step(manager, model, optimizer)
        manager.on_epoch_begin(2)
        step(manager, model, optimizer)
        manager.on_train_end()
        return model[0].weight.detach().clone()

    model, manager, optimizer = begun()
    for epoch in range(2):
        manager.on_epoch_begin(epoch)
        step(manager, model, optimizer)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "manager": manager.state_dict(),
    }
    state = copy.deepcopy(state)
    whole = finish(model, manager, optimizer)
    again = finish(*begun(state))
    assert torch.equal(whole, again)
    assert float((whole == 0).float().mean()) > 0.5


def test_a_loop_without_epochs_is_told():
    model = mlp()
    manager = prepare_compression(model, by_epoch(target_sparsity=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    step(manager, model, optimizer)
    message = (
        r"Pruning reached 0\.0000 instead of 0\.5 .*training ended after no epoch, as on_epoch_begin\(epoch\) was "
        r"never called, and the last mask update is due at epoch 0"
    )
    with pytest.warns(InexactWarning, match=message):
        manager.on_train_end()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_type": "pattern_lock"}, r"WeightPruningConfig\.clock='epoch': expected 'step' for pruning_type="),
        ({"pruning_type": "magnitude_progressive", "pattern": "4x1", "end_step": 4}, r"clock='epoch': expected 'step'"),
        (
            {"initial_sparsity": 0.6, "target_sparsity": 0.5},
            r"initial_sparsity=0\.6: expected a number up to target_spa",
        ),
        ({"clock": "epochs"}, r"clock='epochs': expected one of 'step', 'epoch'\. Did you mean 'epoch'\?"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        by_epoch(**options)


def test_the_plan_says_which_epochs():
    manager = prepare_compression(mlp(), by_epoch(target_sparsity=0.5, start_step=1, end_step=3))
    assert [(phase.what, phase.steps) for phase in manager.plan().phases] == [("1x1 to 50 %, epochs 1 - 3", "0 - end")]
