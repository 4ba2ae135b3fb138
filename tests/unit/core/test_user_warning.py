"""Warnings point at the user's line, however deep they are raised."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.core.errors import InexactWarning, LoopWarning
from inc_torch.core.user_warning import warn_user
from tests.loops.driver import mlp


def test_a_direct_call_points_at_its_line():
    with pytest.warns(InexactWarning, match="^text$") as caught:
        warn_user("text", InexactWarning)
    assert caught[0].filename == __file__


def test_layers_left_dense_are_warned_about_at_prepare_compression():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), nn.ReLU())
    with pytest.warns(InexactWarning, match="leaves 1 of the selected layers dense") as caught:
        prepare_compression(model, WeightPruningConfig())
    assert [warning.filename for warning in caught] == [__file__]


def test_a_hook_missed_inside_optimizer_step_points_at_the_loop():
    model = mlp()
    config = WeightPruningConfig(start_step=1, end_step=2, pattern="1x1")
    manager = prepare_compression(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    manager.on_step_begin(0)
    model(torch.ones(2, 12)).sum().backward()
    with pytest.warns(LoopWarning, match="does not call on_before_optimizer_step") as caught:
        optimizer.step()
    assert [warning.filename for warning in caught] == [__file__]
    manager.callbacks.give_up()
