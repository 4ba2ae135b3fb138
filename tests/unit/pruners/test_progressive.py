"""Progressive types: what an update chooses goes in parts, and ends as whole units."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.pruners import MatrixView, parse_pattern
from inc_torch.pruners._progressive import InParts
from inc_torch.pruners._window import PruningWindow
from inc_torch.training import CompressionManager
from tests.unit.pruners.vectors import VECTORS, Conv1D, pruners_of, replay


def window(start: int, end: int, frequency: int) -> PruningWindow:
    options = {"start_step": start, "end_step": end, "pruning_frequency": frequency, "pattern": "4x1"}
    return PruningWindow(WeightPruningConfig(pruning_type="magnitude_progressive", **options).to_specs()[0])


@pytest.mark.parametrize(
    ("frequency", "parts"),
    [
        (2, [0.5, 1.0]),
        (3, [1 / 3, 2 / 3, 1.0]),
        (4, [0.25, 0.5, 0.75, 1.0]),
        (5, [0.25, 0.5, 0.75, 1.0, 1.0]),
        (8, [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]),
    ],
)
def test_a_quarter_goes_at_once_and_the_last_before_the_next_update(frequency, parts):
    found = window(10, 10 + 4 * frequency, frequency)
    assert [found.part_at(10 + step, 10) for step in range(frequency)] == parts
    assert found.part_at(11 + 4 * frequency, 10 + 4 * frequency) == 1.0


def test_t11_ends_with_whole_blocks_where_inc_lets_weights_grow_back():
    """INC: 24 of 32 zeros at the end, while its report says 0.5."""
    manager, records = replay(VECTORS["T11-progressive-4x1"])
    (pruner,) = pruners_of(manager)
    zeros = [record.zeros_after_begin["a"] for record in records]
    assert [int((record.weights["a"] == 0).sum()) for record in records] == zeros
    assert zeros[:4] == [0] * 4
    assert zeros[4:8] == [2, 4, 6, 8]  # 2 blocks of 4
    assert zeros[8:12] == [11, 14, 17, 20]  # 3 more
    assert zeros[12] == 23  # the first quarter of another 3, as the window ends here
    assert zeros[13:] == [32] * 4
    assert pruner.sparsity == 0.5
    weight = manager.model.a.weight
    blocks = weight.view(2, 4, 8).ne(0).sum(1)
    assert set(blocks.flatten().tolist()) == {0, 4}
    manager.on_train_end()
    assert manager.report().sparsity == 0.5


def layer(rows: int = 8, columns: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(columns, rows), nn.ReLU())


def managed(model: nn.Module, **options: Any) -> CompressionManager:
    defaults = {
        "pruning_type": "magnitude_progressive",
        "pattern": "4x1",
        "target_sparsity": 0.5,
        "start_step": 0,
        "end_step": 12,
        "pruning_frequency": 4,
        "sparsity_decay_type": "linear",
    }
    return prepare_compression(model, WeightPruningConfig(**(defaults | options)))


def drive(manager: CompressionManager, steps: range, *, lr: float = 0.0) -> list[torch.Tensor]:
    """Masks in force in each step."""
    (pruner,) = pruners_of(manager)
    parameters = list(manager.model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=lr)
    masks = []
    for step in steps:
        manager.on_step_begin(step)
        masks.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
        for index, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(100 * step + index)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
    return masks


def test_of_the_chosen_elements_those_of_the_least_scores_go_first():
    model = layer()
    manager = managed(model)
    manager.on_train_begin()
    weight = model[0].weight.detach().clone()
    masks = drive(manager, range(14))
    goal = masks[7].view(8, 8)  # whole blocks again
    chosen = weight[~goal].abs().sort().values
    for step, count in ((4, 2), (5, 4), (6, 6)):
        gone = weight[~masks[step].view(8, 8)].abs()
        assert torch.equal(gone.sort().values, chosen[:count]), step


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "snip_momentum", "gradient"])
@pytest.mark.parametrize("pattern", ["4x1", "2x2", "channelx1", "1xchannel", "4:8"])
def test_parts_add_up_to_whole_units_at_every_update_and_at_the_end(criterion, pattern):
    model = nn.Sequential(*layer(), *layer())
    options = {"pruning_type": f"{criterion}_progressive", "pattern": pattern, "start_step": 1, "end_step": 13}
    manager = managed(model, **options)
    manager.on_train_begin()
    masks = drive(manager, range(15))
    plain = managed(nn.Sequential(*layer(), *layer()), **options | {"pruning_type": criterion})
    plain.on_train_begin()
    whole = drive(plain, range(15))
    # Without a learning rate both choose the same, the plain one at once; but scores with a memory remember how long
    # a weight was there.
    for update in (5,) if criterion == "snip_momentum" else (5, 9):
        assert torch.equal(masks[update + 3], whole[update])
    assert pruners_of(manager)[0].sparsity == pruners_of(plain)[0].sparsity == 0.5
    for before, after in itertools.pairwise(masks[5:9]):
        assert not bool((~before & after).any())  # nothing comes back between updates
        assert int(before.sum()) > int(after.sum())


def test_convolutions_and_turned_weights_are_taken_apart_too():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), Conv1D(8, 16), nn.ReLU())
    torch.manual_seed(0)
    for module in (model[0], model[2]):
        module.weight.data.normal_()
    manager = managed(model)
    manager.on_train_begin()
    drive(manager, range(14))
    conv = model[0].weight.detach().view(2, 4, 4, 3, 3).ne(0).sum(1)
    turned = model[2].weight.detach().t().reshape(2, 4, 16).ne(0).sum(1)
    assert set(conv.flatten().tolist()) == set(turned.flatten().tolist()) == {0, 4}
    assert pruners_of(manager)[0].sparsity == 0.5


def test_training_that_ends_between_parts_ends_with_whole_units():
    model = layer()
    manager = managed(model)
    manager.on_train_begin()
    drive(manager, range(13), lr=0.1)
    assert not pruners_of(manager)[0].is_finished
    manager.on_train_end()
    assert set(model[0].weight.view(2, 4, 8).ne(0).sum(1).flatten().tolist()) == {0, 4}
    assert pruners_of(manager)[0].is_finished
    assert manager.report().sparsity == 0.5


@pytest.mark.parametrize("cut", range(3, 14))
def test_a_run_cut_at_any_step_goes_on_as_the_uncut_one(cut):
    options = {"pruning_type": "snip_momentum_progressive", "start_step": 1, "end_step": 9}
    whole, first, again = layer(), layer(), layer()
    uncut, begun, resumed = (managed(model, **options) for model in (whole, first, again))
    uncut.on_train_begin()
    expected = drive(uncut, range(14), lr=0.1)
    begun.on_train_begin()
    drive(begun, range(cut), lr=0.1)
    again.load_state_dict(first.state_dict())
    resumed.load_state_dict(begun.state_dict())
    resumed.on_train_begin()
    found = drive(resumed, range(cut, 14), lr=0.1)
    assert all(torch.equal(one, other) for one, other in zip(found, expected[cut:], strict=True))
    assert torch.equal(again[0].weight, whole[0].weight)


VIEWS = {
    "linear": (nn.Linear(8, 12), ["4x1", "2x2", "1x4", "channelx1", "1xchannel"]),
    "conv": (nn.Conv2d(4, 8, 3), ["4x1", "2x2", "1xchannel", "1x6"]),
    "turned": (Conv1D(12, 8), ["4x1", "2x2", "1x4", "channelx1"]),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, (_, texts) in VIEWS.items() for text in texts])
@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
def test_blocks_by_elements_are_the_blocks_of_the_pattern(name, text, reduction):
    module = VIEWS[name][0]
    view, pattern = MatrixView.of(module, module.weight.shape), parse_pattern(text)
    whole, parts = pattern.grid(view, reduction), InParts(pattern).grid(view, reduction)
    torch.manual_seed(0)
    weight = torch.randn(module.weight.shape)
    scores = parts.reduce(weight)
    assert parts.units == whole.units
    torch.testing.assert_close(parts.unit_scores(scores), whole.unit_scores(whole.reduce(weight)))
    keep = torch.rand(whole.units) < 0.5
    mask = parts.mask(scores, keep)
    assert torch.equal(parts.expand(mask), whole.expand(keep.view(whole.mask_shape)))
    assert parts.pruned_units(mask) == int((~keep).sum())
    assert torch.equal(parts.expand(scores), weight.abs())
    masked = weight.clone()
    parts.apply_(masked, mask)
    assert torch.equal(masked, weight * parts.expand(mask))
    assert torch.equal(parts.expand(parts.zeros_of(parts.reduce(masked))), parts.expand(mask))
    assert parts.first_axis() == whole.first_axis()
