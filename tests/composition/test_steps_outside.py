"""Steps that no hook tells of: a loop that calls none, or trains before the compression begins."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inc_torch import prepare_compression
from inc_torch.core.errors import LoopWarning
from tests.loops.driver import assert_equal_states, confs_of, mlp, pruning, rows, train

STEPS = 5


@pytest.mark.parametrize("letters", ["p", "q", "d"])
def test_steps_before_the_training_begins_change_nothing_and_are_told_once(letters):
    """So is a loop that calls no hook at all."""
    data = list(rows(STEPS))
    straight = mlp()
    expected = prepare_compression(straight, confs_of(letters, mlp(seed=1)))
    optimizer = torch.optim.SGD(straight.parameters(), lr=0.0)
    train(expected, optimizer, iter(data))

    model = mlp()
    manager = prepare_compression(model, confs_of(letters, mlp(seed=1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.warns(LoopWarning, match="made a step before on_train_begin") as record:
        for inputs, labels in data:
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(record) == 1
    assert manager.callbacks.progress.step == 0
    train(manager, optimizer, iter(data))
    assert_equal_states(model.state_dict(), straight.state_dict())
    assert manager.callbacks.progress.step == STEPS


def test_steps_of_other_models_are_nobodys_concern(recwarn):
    manager = prepare_compression(mlp(), pruning())
    other = mlp(seed=1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(next(rows(1))[0]).sum().backward()
    optimizer.step()
    assert not [warning for warning in recwarn if issubclass(warning.category, LoopWarning)]
    assert manager.callbacks.progress.step == 0
