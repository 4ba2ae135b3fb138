"""Distillation in several processes: what is learnt is what one process learns, wherever the teacher lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from inc_torch import (
    DistillationConfig,
    IntermediateLayersKnowledgeDistillationLossConfig,
    KnowledgeDistillationLossConfig,
    prepare_compression,
)
from inc_torch.core.sharding import whole
from tests.distributed.worlds import run_world

STEPS, BATCH = 4, 12


def _net(seed: int, width: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def _wrapped(model: nn.Module, how: str) -> nn.Module:
    if how == "DDP":
        return DistributedDataParallel(model)
    if how == "FSDP2":
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return model


def train(student_in: str = "", teacher_in: str = "") -> dict[str, Any]:
    """Distil logits and a layer of another width; every rank sees its part of each batch."""
    ranks = distributed.get_world_size() if student_in or teacher_in else 1
    rank = distributed.get_rank() if ranks > 1 else 0
    net, teacher = _net(0, 6), _wrapped(_net(1, 8), teacher_in)
    knowledge = KnowledgeDistillationLossConfig(2.0, ["CE", "KL"], [0.5, 0.5])
    layers = IntermediateLayersKnowledgeDistillationLossConfig(["0", "1"], projection_learning_rate=0.05)
    manager = prepare_compression(net, DistillationConfig(teacher, [knowledge, layers]))
    model = _wrapped(net, student_in)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    manager.on_train_begin()
    batches = torch.randn(STEPS, BATCH, 4, generator=torch.Generator().manual_seed(2))
    for index, batch in enumerate(batches):
        part = batch.chunk(ranks)[rank]
        manager.on_step_begin(index)
        output = model(part)
        manager.on_after_compute_loss(part, output, output.square().mean()).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
    manager.on_train_end()
    projections = manager.callbacks.callbacks_list[0].losses[1].projections
    return {
        "weights": {name: whole(tensor.detach()) for name, tensor in net.state_dict().items()},
        "projections": [projection.weight.detach() for projection in projections.values()],
    }


@pytest.mark.parametrize(
    ("student_in", "teacher_in"), [("DDP", ""), ("DDP", "FSDP2"), ("FSDP2", "FSDP2"), ("FSDP2", "")]
)
def test_two_processes_learn_what_one_does(student_in, teacher_in):
    if "FSDP2" in (student_in, teacher_in) and torch.__version__.startswith("2.8."):
        pytest.skip("torch 2.8 adds up gradients of FSDP2 over gloo instead of averaging them")
    alone = train()
    assert list(alone["weights"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for result in run_world(train, 2, student_in, teacher_in):
        torch.testing.assert_close(result, alone, rtol=1e-4, atol=1e-5)
        first, second = result["projections"]
        assert first.shape == second.shape == (8, 6)
        assert not torch.equal(first, second)
