"""A sharded model becomes a plain one again: one process that shards by one, and what cannot be undone."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from inc_torch.core.errors import ModelError
from inc_torch.core.report import CompressionReport
from inc_torch.core.sharding import exchange_class, plain_class, require_unshardable, unshard_model_, whole


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return x + self.norm(self.inner(x))

    def other(self, x):
        return self.inner(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.blocks(self.table(ids)))


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def shard(model, mesh, **options):
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    register_fsdp_forward_method(model.blocks[0], "other")
    return fully_shard(model, mesh=mesh, **options)


def attributes(model):
    """What every module has in its dictionary, and how many hooks."""
    return {
        name: {key: len(value) if "_hooks" in key else None for key, value in vars(module).items() if key[:2] != "__"}
        for name, module in model.named_modules()
    }


IDS = torch.arange(5).view(1, 5)


@pytest.mark.parametrize("phase", ["new", "after a forward", "after a backward"])
def test_everything_is_as_before(mesh, phase):
    model = Net()
    model.blocks[1].norm.requires_grad_(False)
    twin = copy.deepcopy(model)
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append("mine"))
    before = attributes(model)
    # In bfloat16 what was gathered for a forward is not what was trained.
    shard(model, mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    assert isinstance(model.table.weight, DTensor)
    if phase != "new":
        output = model.eval()(IDS)
        if phase == "after a backward":
            output.sum().backward()
    calls.clear()
    unshard_model_(model)

    assert [type(module) for module in model.modules()] == [type(module) for module in twin.modules()]
    assert attributes(model) == before
    for (name, parameter), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert type(parameter) is nn.Parameter, name
        assert torch.equal(parameter, expected), name
        assert parameter.requires_grad == expected.requires_grad, name
    assert model.head.weight is model.table.weight
    assert torch.equal(model(IDS), twin(IDS))
    assert torch.equal(model.blocks[0].other(torch.ones(4)), twin.blocks[0].other(torch.ones(4)))
    assert calls == ["mine"]


def test_it_can_be_copied_pickled_and_sharded_again(mesh):
    model = Net()
    twin = copy.deepcopy(model)
    unshard_model_(shard(model, mesh))
    assert torch.equal(copy.deepcopy(model)(IDS), twin(IDS))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(IDS), twin(IDS))
    shard(model, mesh)
    assert torch.allclose(model(IDS), twin(IDS))
    unshard_model_(model)
    assert torch.equal(model(IDS), twin(IDS))


def test_a_plain_model_is_left_alone():
    model = Net()
    parameters, before = list(model.parameters()), attributes(model)
    unshard_model_(model)
    assert attributes(model) == before
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))


def test_classes(mesh):
    assert plain_class(nn.Linear) is nn.Linear
    layer = fully_shard(nn.Linear(2, 2), mesh=mesh)
    assert plain_class(type(layer)) is nn.Linear

    class Derived(nn.Linear):
        pass

    exchange_class(layer, Derived)
    assert type(layer).__mro__[:3] == (type(layer), FSDPModule, Derived)
    assert type(layer).__name__ == "FSDPDerived"
    other = fully_shard(nn.Linear(2, 2), mesh=mesh)
    exchange_class(other, Derived)
    assert type(other) is type(layer)
    unshard_model_(layer)
    assert type(layer) is Derived


def test_whole(mesh):
    values = torch.arange(6.0).view(3, 2)
    sharded = distribute_tensor(values, mesh, [Shard(0)])
    assert type(whole(sharded)) is torch.Tensor
    assert torch.equal(whole(sharded), values)
    assert whole(values) is values


def test_a_report_measures_the_whole_weight(mesh):
    model = Net()
    with torch.no_grad():
        model.blocks[0].inner.weight[:2] = 0
    plain = CompressionReport.measure(model)
    sharded = CompressionReport.measure(shard(model, mesh))
    assert sharded == plain
    assert {row.name: row.zeros for row in sharded.modules}["blocks.0.inner"] == 8


def test_what_is_sharded_around_the_model_is_refused(mesh):
    model = Net()
    shard(model, mesh)
    require_unshardable(model.blocks[0])
    with pytest.raises(ModelError) as caught:
        unshard_model_(model.head)
    assert str(caught.value) == (
        "Linear cannot be made plain again: its Parameter 'weight' is a DTensor, and neither its module nor one that "
        "holds it was given to fully_shard. Shard the model with torch.distributed.fsdp.fully_shard alone, and call it "
        "on the model itself, not on a module around it."
    )
    assert isinstance(model.head.weight, DTensor)


def test_tensor_parallelism_is_refused(mesh):
    layer = nn.Linear(4, 4)
    plane = init_device_mesh("cpu", (1, 1))
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), plane, [Shard(0), Shard(1)]))
    with pytest.raises(ModelError, match=r"'0.weight' is a DTensor, and it is sharded more than once \(S\(0\), S\(1\)"):
        unshard_model_(nn.Sequential(layer))
