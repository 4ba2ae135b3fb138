"""What INC's 1.X pruners do, by reference vectors, and what is done instead: every one of them misses its target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from inc_torch.experimental import Pruning

_FILE = Path(__file__).parents[2] / "vectors" / "pruning.json"
VECTORS = {vector["id"]: vector for vector in json.loads(_FILE.read_text(encoding="utf-8"))["vectors"]}


def model_of(vector) -> nn.Sequential:
    weight = torch.tensor(vector["inputs"]["weight"])
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False), nn.ReLU())
    model[0].weight.data = weight
    return model


def component(section: str, **options) -> Pruning:
    return Pruning({"pruning": {"approach": {section: options}}})


@pytest.mark.parametrize(
    ("vector_id", "units"),
    [("L01-basic_magnitude-1x1", [0, 6, 6, 12, 12, 12]), ("L02-basic_magnitude-tile_2x2", [0, 2, 4, 6, 6])],
)
def test_epochs_prune_what_is_asked_for(vector_id, units):
    """INC prunes one unit too many at each epoch; with a frequency that does not divide the epochs it stops short."""
    vector = VECTORS[vector_id]
    config = vector["config"]
    entry = {name: value for name, value in config.items() if name != "names"}
    prune = component("weight_compression", pruners=[entry | {"names": ["0.weight"]}])
    prune.model = model_of(vector)
    size = 4 if "2x2" in vector_id else 1
    for epoch, (count, theirs) in enumerate(zip(units, vector["expected"]["epochs"], strict=False)):
        prune.on_epoch_begin(epoch)
        zeros = prune.model[0].weight == 0
        assert int(zeros.sum()) == count * size
        if theirs["mask"] is not None and theirs["zeros"] >= count * size:
            assert not (zeros & torch.tensor(theirs["mask"], dtype=torch.bool)).any()  # the same ones go first
    target = int(config["target_sparsity"] * prune.model[0].weight.numel() / size)
    assert units[-1] == target != vector["expected"]["epochs"][-1]["zeros"] / size
    prune.on_train_end()


def replayed(vector) -> tuple[Pruning, list[int]]:
    config = vector["config"]
    prune = component(
        "weight_compression_pytorch",
        prune_type=config["prune_type"],
        target_sparsity=config["target_sparsity"],
        start_step=config["start_step"],
        end_step=config["end_step"],
        update_frequency_on_step=config["freq"],
        sparsity_decay_type=config["decay"],
        names=["0"],
    )
    prune.model = model_of(vector)
    optimizer = torch.optim.SGD(prune.model.parameters(), lr=1e-3)
    zeros = []
    for step, gradient in enumerate(vector["inputs"]["grads_per_step"]):
        prune.on_step_begin(step)
        zeros.append(int((prune.model[0].weight == 0).sum()))
        prune.model[0].weight.grad = torch.tensor(gradient)
        prune.on_before_optimizer_step()
        optimizer.step()
        prune.on_after_optimizer_step()
        prune.on_step_end()
    return prune, zeros


def test_steps_reach_their_target():
    """INC stops one update short of it."""
    vector = VECTORS["L04-pytorch_pruner-snip_momentum"]
    theirs = [step["zeros_of_100"] for step in vector["expected"]["steps"]]
    prune, zeros = replayed(vector)
    assert zeros[:6] == [0, 0, 12, 25, 37, 50]  # a fourth of 50 at each step from the second to the fifth
    assert max(theirs) == 40
    prune.on_train_end()
    assert prune.report().sparsity == 0.5


def test_magnitude_is_a_magnitude():
    """INC ranks by the signed weight here, so the most negative go first, however great they are."""
    vector = VECTORS["L05-pytorch_pruner-magnitude"]
    prune, zeros = replayed(vector)
    last = vector["expected"]["steps"][-1]
    weight = torch.tensor(vector["inputs"]["weight"])
    theirs = torch.tensor(last["mask"]) == 0
    assert weight[theirs].max() < weight[~theirs].min()
    assert weight[theirs].min() == -99
    assert max(zeros) == 50
    ours = prune.model[0].weight == 0
    assert weight[ours].abs().max() < weight[~ours].abs().min()
    prune.on_train_end()
