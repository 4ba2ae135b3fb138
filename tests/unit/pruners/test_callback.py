"""Pruning through `prepare_compression`: configs, hooks, report and state."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn

from inc_torch.callbacks.pruning import PruningCallbacks
from inc_torch.config import WeightPruningConfig
from inc_torch.core.errors import InexactWarning, LoopWarning, StateError
from inc_torch.core.hooks import Stage
from inc_torch.training import CompressionManager, prepare_compression
from tests.unit.pruners.make import backward, mlp, stack, zeros
from tests.unit.pruners.vectors import pruners_of

STEPS = 6


def step(manager: CompressionManager, optimizer: torch.optim.Optimizer, index: int) -> None:
    torch.manual_seed(index)
    manager.on_step_begin(index)
    backward(manager.model)
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()
    manager.on_step_end()


def train(manager: CompressionManager, steps: int = STEPS) -> None:
    optimizer = torch.optim.SGD(manager.model.parameters(), lr=0.1, momentum=0.9)
    manager.on_train_begin()
    for index in range(steps):
        step(manager, optimizer, index)
    manager.on_train_end()


def test_default_config_prunes_once_with_one_warning():
    model = mlp()
    manager = prepare_compression(model, WeightPruningConfig())
    with pytest.warns(LoopWarning, match="SnipMomentum has seen no gradient yet, or only zeros, at step 0") as caught:
        train(manager, 3)
    assert len(caught) == 1
    blocks = (16 // 4) * 8 + (8 // 4) * 16
    assert zeros(model[0]) + zeros(model[2]) == 4 * int(0.9 * blocks)
    assert zeros(model[4]) == 0
    assert manager.report().sparsity == 4 * int(0.9 * blocks) / (4 * blocks)


def test_pruners_are_found_as_in_inc():
    manager = prepare_compression(mlp(), WeightPruningConfig([{"op_names": "^0$"}, {"op_names": "^2$"}]))
    (callback,) = manager.callbacks.callbacks_list
    assert isinstance(callback, PruningCallbacks)
    assert repr(callback) == "Pruning Callbacks"
    assert callback.stage is Stage.MASK
    assert [list(pruner.masks) for pruner in callback.pruners] == [["0"], ["2"]]
    assert [pruner.group for pruner in callback.pruners] == [0, 1]


def test_only_pruned_weights_are_its_clock():
    model = mlp()
    (callback,) = prepare_compression(model, WeightPruningConfig(op_names=["0"])).callbacks.callbacks_list
    assert [id(parameter) for parameter in callback.tracked_parameters()] == [id(model[0].weight)]


def test_momentum_is_cleared_through_the_hooks():
    model = mlp()
    manager = prepare_compression(model, WeightPruningConfig(pruning_type="magnitude", pattern="1x1"))
    optimizer = torch.optim.Adam(model.parameters())
    manager.on_train_begin()
    for index in range(2):
        step(manager, optimizer, index)
    manager.on_train_end()
    for name, mask in pruners_of(manager)[0].masks.items():
        assert (optimizer.state[model.get_submodule(name).weight]["exp_avg"][~mask] == 0).all()


def test_a_layer_of_two_pruners_obeys_both():
    model = stack(nn.Linear(8, 8))
    both = [{"pattern": "1x1", "target_sparsity": 0.25}, {"pattern": "4x1", "target_sparsity": 0.25}]
    with pytest.warns(InexactWarning, match=r"1 layer\(s\) are taken by several pruning configs: '0'"):
        manager = prepare_compression(model, WeightPruningConfig(both, pruning_type="magnitude"))
    train(manager)
    assert 16 <= zeros(model[0]) <= 32


def test_a_run_that_is_too_short_is_said_at_its_end():
    config = WeightPruningConfig(pruning_type="magnitude", end_step=100)
    with pytest.warns(InexactWarning, match=r"training ended after 6 optimizer steps, .* due at step 100"):
        train(prepare_compression(mlp(), config))


def test_indivisible_layer_is_warned_about_once_and_reported():
    model = stack(nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 8))
    config = WeightPruningConfig(pruning_type="magnitude", target_sparsity=0.5)
    with pytest.warns(InexactWarning, match=r"'1': a 6x8 weight does not divide into 4x1 blocks") as caught:
        manager = prepare_compression(model, config)
        manager.on_train_begin()
        manager.on_step_begin(0)
    assert len(caught) == 1
    rows = {row.name: row for row in manager.report().modules}
    assert rows["1"].notes == ("left dense: a 6x8 weight does not divide into 4x1 blocks",)
    assert (rows["1"].asked_sparsity, rows["1"].zeros) == (None, 0)
    assert rows["0"].asked_sparsity == 0.5


def test_skipped_steps_of_a_gradient_scaler_enter_no_score():
    """An infinite gradient is followed by no optimizer step: neither scores nor the schedule move."""
    model = mlp()
    manager = prepare_compression(model, WeightPruningConfig(start_step=1, end_step=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    step(manager, optimizer, 0)
    before = {name: score.clone() for name, score in pruners_of(manager)[0].scores.items()}
    manager.on_step_begin(1)
    backward(model)
    model[0].weight.grad[0, 0] = float("inf")
    with pytest.warns(LoopWarning, match="Non-finite values"):
        manager.on_before_optimizer_step()
    manager.on_after_optimizer_step()
    assert all(torch.equal(score, before[name]) for name, score in pruners_of(manager)[0].scores.items())
    assert manager.callbacks.progress.step == 1
    for index in range(1, 3):
        step(manager, optimizer, index)
    manager.on_train_end()
    assert pruners_of(manager)[0].sparsity == pytest.approx(0.9, abs=1 / 64)


# ------------------------------------------------------------------------------------ metrics, goal


def test_metrics_tell_the_sparsity_of_one_pruner_and_of_several():
    one = prepare_compression(mlp(), WeightPruningConfig(pruning_type="magnitude", pattern="1x1", target_sparsity=0.25))
    (callback,) = one.callbacks.callbacks_list
    assert callback.metrics() == {"sparsity": 0.0}
    train(one, 1)
    assert callback.metrics() == {"sparsity": 0.25}
    model = stack(nn.Linear(8, 8), nn.Linear(8, 24))
    apart = [{"op_names": ["^0$"], "pattern": "channelx1"}, {"op_names": ["^1$"], "pattern": "2:4"}]
    two = prepare_compression(model, WeightPruningConfig(apart, pruning_type="magnitude", target_sparsity=0.25))
    train(two, 1)
    # 2 of 8 columns of 64 weights, and half of each of 24 groups of 48 among 192 weights.
    assert two.callbacks.callbacks_list[0].metrics() == {"sparsity": 0.25, "sparsity/0": 0.25, "sparsity/1": 0.25}
    with torch.no_grad():
        model[0].weight.zero_()
    lock = prepare_compression(model, WeightPruningConfig(apart, pruning_type="pattern_lock"))
    train(lock, 1)
    assert lock.callbacks.callbacks_list[0].metrics() == {
        "sparsity": (64 + 48) / 256,
        "sparsity/0": 1.0,
        "sparsity/1": 0.25,
    }


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({"start_step": 1, "end_step": 4}, [False] * 4 + [True] * 2),
        ({"start_step": 1, "end_step": 4, "pruning_frequency": 2}, [False] * 3 + [True] * 3),
        ({"start_step": 2, "end_step": 2}, [False] * 2 + [True] * 4),
        ([{"op_names": ["^0$"]}, {"op_names": ["^2$"], "start_step": 3, "end_step": 3}], [False] * 3 + [True] * 3),
        ({"pruning_type": "pattern_lock", "start_step": 2, "end_step": 2}, [False] * 2 + [True] * 4),
    ],
)
def test_the_goal_is_reached_after_the_last_update_of_all_pruners(options, reached):
    several = options if isinstance(options, list) else [{}]
    common = {"pruning_type": "magnitude", "pattern": "1x1", "target_sparsity": 0.5}
    model = mlp()
    manager = prepare_compression(
        model, WeightPruningConfig(several, **{**common, **({} if isinstance(options, list) else options)})
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (callback,) = manager.callbacks.callbacks_list
    assert not callback.has_reached_goal()
    found = []
    manager.on_train_begin()
    for index in range(STEPS):
        step(manager, optimizer, index)
        found.append(callback.has_reached_goal())
    manager.on_train_end()
    assert found == reached


@pytest.mark.filterwarnings("ignore:Pruning criterion:inc_torch.core.errors.LoopWarning")
def test_an_update_that_waits_for_gradients_has_not_reached_the_goal():
    model = mlp()
    manager = prepare_compression(model, WeightPruningConfig(pruning_type="snip", pattern="1x1"))
    (callback,) = manager.callbacks.callbacks_list
    manager.on_train_begin()
    manager.on_step_begin(0)
    assert not callback.has_reached_goal()
    backward(model)
    manager.on_before_optimizer_step()
    assert callback.has_reached_goal()
    manager.callbacks.give_up()


# -------------------------------------------------------------------------------------- state

CONFIG = WeightPruningConfig(
    [
        {"op_names": ["^0$"], "pattern": "4x1"},
        {"op_names": ["^2$"], "pattern": "2:4", "target_sparsity": 0.5, "pruning_type": "gradient"},
    ],
    start_step=1,
    end_step=5,
    pruning_frequency=2,
)


def outcome(manager: CompressionManager) -> dict[str, torch.Tensor]:
    named = dict(manager.model.state_dict())
    for pruner in pruners_of(manager):
        named |= {f"mask {name}": mask for name, mask in pruner.stored_masks.items()}
        named |= {f"score {name}": score for name, score in pruner.scores.items()}
    return named


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def resumable(cut_at: int | None) -> dict[str, torch.Tensor]:
    """All steps; cut at a step, they go on in objects made anew."""
    torch.manual_seed(5)
    model = mlp()
    manager = prepare_compression(model, CONFIG)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    manager.on_train_begin()
    for index in range(STEPS):
        if index == cut_at:
            saved = through_a_file(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "manager": manager.state_dict()}
            )
            manager.on_train_end()
            model = mlp()
            model.load_state_dict(saved["model"])
            manager = prepare_compression(model, CONFIG)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            optimizer.load_state_dict(saved["optimizer"])
            manager.load_state_dict(saved["manager"])
            manager.on_train_begin()
        step(manager, optimizer, index)
    manager.on_train_end()
    return outcome(manager)


def test_cut_at_every_step_ends_the_same():
    expected = resumable(None)
    assert any(name.startswith("mask") for name in expected)
    for cut_at in range(STEPS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InexactWarning)  # the first half ends short of its target
            found = resumable(cut_at)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items()), cut_at


def test_loaded_masks_are_applied_before_the_first_forward():
    """The weights may come from elsewhere, such as a float checkpoint."""
    config = WeightPruningConfig(pruning_type="magnitude", pattern="1x1", target_sparsity=0.5)
    manager = prepare_compression(mlp(), config)
    train(manager)
    model = mlp()
    again = prepare_compression(model, config)
    again.load_state_dict(manager.state_dict())
    assert zeros(model[0]) == 0
    again.on_train_begin()
    assert zeros(model[0]) + zeros(model[2]) == 128
    again.on_train_end()


def test_a_state_of_another_number_of_pruners_is_refused():
    one = prepare_compression(mlp(), WeightPruningConfig()).callbacks.callbacks_list[0]
    apart = WeightPruningConfig([{"op_names": "0"}, {"op_names": "2"}])
    two = prepare_compression(mlp(), apart).callbacks.callbacks_list[0]
    with pytest.raises(StateError, match="The saved state has 2 pruners; this run has 1"):
        one.load_state_dict(two.state_dict())
    with pytest.raises(StateError, match=r"Pruning Callbacks does not fit: missing \['history', 'pruners'\]"):
        one.load_state_dict({})
