"""Pruning under DistributedDataParallel: every rank has the masks of one process with the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.core.errors import StateError
from inc_torch.core.ranks import Ranks
from inc_torch.pruners import Pruner
from tests.distributed.worlds import run_world
from tests.unit.pruners.make import backward, mlp, spec_of

STEPS = 6
BATCH = 8
CONFIGS = {
    "snip_momentum 4x1 global": {"pattern": "4x1", "pruning_type": "snip_momentum"},
    "magnitude 1x1 local": {"pattern": "1x1", "pruning_type": "magnitude", "pruning_scope": "local"},
    "gradient 2:4": {"pattern": "2:4", "pruning_type": "gradient", "target_sparsity": 0.5},
    "snip channelx1": {"pattern": "channelx1", "pruning_type": "snip", "target_sparsity": 0.5},
}


def train(options: dict[str, Any], rank: int = 0, ranks: int = 1) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """All steps on every ``ranks``-th example; the state of the pruner and the weights at the end."""
    torch.manual_seed(3)
    model = mlp().double()
    config = WeightPruningConfig(target_sparsity=0.7, start_step=1, end_step=5, pruning_frequency=2)
    manager = prepare_compression(model, WeightPruningConfig(**{**config.to_dict()["data"], **options}))
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = torch.randn(STEPS, BATCH, 8, dtype=torch.float64)
    manager.on_train_begin()
    for step in range(STEPS):
        manager.on_step_begin(step)
        optimizer.zero_grad()
        wrapped(data[step, rank::ranks]).square().mean().backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        manager.on_step_end()
    state = manager.callbacks.callbacks_list[0].pruners[0].state_dict()
    manager.on_train_end()
    return state, dict(model.state_dict())


def train_here() -> dict[str, Any]:
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    return {name: train(options, rank, ranks) for name, options in CONFIGS.items()}


def test_every_rank_has_the_masks_of_one_process_with_the_whole_batch():
    of_ranks = run_world(train_here, 2)
    for name, options in CONFIGS.items():
        state, weights = train(options)
        assert sum(int((~mask).sum()) for mask in state["masks"].values()) > 0, name
        for found, found_weights in (results[name] for results in of_ranks):
            assert found["masks"].keys() == state["masks"].keys()
            assert all(torch.equal(mask, state["masks"][key]) for key, mask in found["masks"].items()), name
            # Averages of gradients are added up in another order than one mean over all examples.
            torch.testing.assert_close(found_weights, weights, rtol=1e-10, atol=1e-12)
        first, second = (results[name][0]["scores"] for results in of_ranks)
        assert all(torch.equal(score, second[key]) for key, score in first.items()), name


def prune_with_own_gradients(ranks: Ranks, model: nn.Module) -> Pruner:
    """One update from data that differ from rank to rank, without DistributedDataParallel."""
    pruner = Pruner(spec_of(criterion="snip", start=1, end=1), model)
    pruner.bind(model, ranks)
    torch.manual_seed(distributed.get_rank())
    backward(model)
    pruner.collect_scores()
    pruner.begin_step(1)
    return pruner


def go_apart() -> dict[str, Any]:
    """What is said where ranks prune differently, each on its own or resumed together."""
    torch.manual_seed(3)
    model = mlp()
    start = copy.deepcopy(model.state_dict())
    groups = [distributed.new_group([rank]) for rank in range(distributed.get_world_size())]
    said: dict[str, Any] = {}
    with pytest.raises(StateError) as caught:
        prune_with_own_gradients(Ranks(), model)
    said["together"] = str(caught.value)
    model.load_state_dict(start)
    pruner = prune_with_own_gradients(Ranks(groups[distributed.get_rank()]), model)
    said["apart"] = pruner.sparsity
    with pytest.raises(StateError) as caught:
        pruner.bind(model, Ranks())
    said["resumed together"] = str(caught.value)
    return said


def test_masks_that_differ_are_an_error_on_every_rank():
    for said in run_world(go_apart, 2):
        assert said["together"].startswith("Pruning masks differ between the 2 processes")
        assert "process_group=" in said["together"]
        assert said["apart"] == 0.5
        assert said["resumed together"] == said["together"]
