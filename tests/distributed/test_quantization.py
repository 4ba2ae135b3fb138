"""Quantization-aware training on two processes: ranges, collectives, states and int8 codes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from inc_torch import QuantizationAwareTrainingConfig, prepare_compression
from inc_torch.callbacks.quantization import QuantizationAwareTrainingCallbacks
from inc_torch.core.errors import ModelError
from inc_torch.core.hooks import Progress
from inc_torch.core.report import CompressionReport
from inc_torch.quantizers import QuantSpec
from tests.distributed.worlds import run_world

ROWS, STEPS = 8, 4
OBSERVED = {"blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"}
TOLERANCE = 1e-5
"""Relative; of ranges after some steps on weights whose gradients were summed in another order."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 17)
        self.down = nn.Linear(17, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Head(nn.Linear):
    """Not exactly a Linear, so it stays in float."""


class Net(nn.Module):
    """An embedding, two blocks, and a head that stays in float; no size is divisible by two ranks but the width."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(11, 8)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = Head(8, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.head(self.blocks(self.table(ids)))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return list(torch.randint(11, (STEPS, ROWS, 5), generator=generator))


def bound(model: nn.Module) -> QuantizationAwareTrainingCallbacks:
    callback = QuantizationAwareTrainingCallbacks(QuantSpec())
    callback.prepare(model, Progress())
    return callback


def share(batch: torch.Tensor) -> torch.Tensor:
    """The rows of this rank."""
    if not distributed.is_initialized():
        return batch
    return batch.chunk(distributed.get_world_size())[distributed.get_rank()]


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the values in every call of all_reduce from Python, which is how the ranges are reduced."""
    calls, reduce = [], distributed.all_reduce

    def count(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    distributed.all_reduce = count
    try:
        yield calls
    finally:
        distributed.all_reduce = reduce


def train(
    callback: QuantizationAwareTrainingCallbacks, wrapped: nn.Module, accumulate: int = 1, rate: float = 0.05
) -> dict[str, Any]:
    """Train to the end on all batches, and tell what came out."""
    optimizer = torch.optim.SGD(wrapped.parameters(), rate)
    first: dict[str, Any] = {}
    callback.on_train_begin()
    with counted() as calls:
        for batch in batches():
            *some, last = share(batch).chunk(accumulate)
            with wrapped.no_sync() if some and isinstance(wrapped, DistributedDataParallel) else nullcontext():
                for part in some:
                    (wrapped(part).square().mean() / accumulate).backward()
            (wrapped(last).square().mean() / accumulate).backward()
            callback.on_before_optimizer_step()
            optimizer.step()
            optimizer.zero_grad()
            first = first or callback.state_dict()["observers"]
    result = {"first": first, "last": callback.state_dict()["observers"], "calls": calls}
    callback.on_train_end()
    model = callback.model
    result["classes"] = [type(module).__name__ for module in model.modules()]
    result["tensor types"] = {type(tensor).__name__ for tensor in model.state_dict().values()}
    result["int8"] = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        result["output"] = model(batches()[0])
    return result


def ranges(state: dict[str, Any]) -> torch.Tensor:
    return torch.stack([state[name]["range"] for name in sorted(OBSERVED)])


def same(left: Any, right: Any) -> bool:
    """Equal in depth, bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def with_ddp(accumulate: int = 1, **options: Any) -> dict[str, Any]:
    model = Net()
    callback = bound(model)
    return train(callback, DistributedDataParallel(model, **options), accumulate)


def sharded(model: nn.Module) -> nn.Module:
    fully_shard(model.blocks[0].up)
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def with_fsdp(is_sharded_first: bool) -> dict[str, Any]:
    model = Net()
    model = sharded(model) if is_sharded_first else model
    callback = bound(model)
    model = model if is_sharded_first else sharded(model)
    report = CompressionReport.measure(model)
    return {"report": report, **train(callback, model, rate=0.05 / times_too_great())}


def with_fsdp_around() -> dict[str, Any]:
    """A model of which the callback cannot gather what is sharded together with its surroundings."""
    model = Net()
    callback = bound(model)
    fully_shard(nn.Sequential(model))
    with pytest.raises(ModelError) as caught:
        callback.on_train_begin()
    return {"message": str(caught.value)}


def times_too_great() -> float:
    """FSDP2 of torch 2.8 sums gradients over gloo, where it should average them."""
    layer = fully_shard(nn.Linear(1, 1, bias=False))
    layer(torch.ones(1, 1)).sum().backward()
    return layer.weight.grad.full_tensor().item()


MODULES = ("all", "nan", "first", "second", "unused", "empty")


def with_modules_that_differ() -> dict[str, Any]:
    """A step in which every rank sees something else: nothing, NaN, or another module."""
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in MODULES})
    callback = bound(model)
    callback.on_train_begin()
    is_first = distributed.get_rank() == 0
    values = torch.tensor([[-1.0, 2.0]]) if is_first else torch.tensor([[-3.0, 1.0]])
    model["all"](values)
    model["nan"](values if is_first else values * math.nan)
    model["first" if is_first else "second"](values)
    model["empty"](torch.empty(0, 2) if is_first else values)
    before = callback.state_dict()["observers"]
    callback.on_before_optimizer_step()
    return {"before": before, "after": callback.state_dict()["observers"]}


def with_a_cut() -> dict[str, Any]:
    """A state from the middle of an accumulation, and what comes of it after one more micro-batch."""
    model = Net()
    callback = bound(model)
    callback.on_train_begin()
    first, second = batches()[0].split(4)
    model(share(first))
    state = callback.state_dict()
    model(share(second))
    callback.on_before_optimizer_step()
    return {"state": state, "after": callback.state_dict()}


def with_a_trainer_of_somebody_else() -> dict[str, Any]:
    """The script that calls no hook but the first and the last; our warnings are errors in this process."""
    model = Net()
    manager = prepare_compression(model, QuantizationAwareTrainingConfig())
    manager.callbacks.on_train_begin()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05)
    with counted() as calls:
        for batch in batches():
            wrapped(share(batch)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    steps = {
        int(observer["steps"]) for observer in manager.callbacks.callbacks_list[0].state_dict()["observers"].values()
    }
    manager.callbacks.on_train_end()
    return {"calls": len(calls), "steps": steps, "int8": model.state_dict()}


class Normed(Net):
    """With batch normalization before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.table(ids)).mean(1)))


FROZEN_AFTER = 2


def with_freezing(wrap: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """Ranges and statistics of batch normalization stay after the second of four steps."""
    model = Normed()
    config = QuantizationAwareTrainingConfig(
        freeze_observers_step=FROZEN_AFTER, freeze_batch_norm_step=FROZEN_AFTER, graph="off"
    )
    manager = prepare_compression(model, config)
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05)
    manager.on_train_begin()
    means = []
    with counted() as calls:
        for index, batch in enumerate(batches()):
            manager.on_step_begin(index)
            wrapped.train()(share(batch)).square().mean().backward()
            manager.on_before_optimizer_step()
            optimizer.step()
            manager.on_after_optimizer_step()
            optimizer.zero_grad()
            means.append(model.norm.running_mean.clone())
    observers = manager.callbacks.callbacks_list[0].state_dict()["observers"]
    manager.on_train_end()
    classes = {type(module).__name__ for module in model.modules()}
    return {"calls": calls, "means": means, "observers": observers, "int8": model.state_dict(), "classes": classes}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "ddp": with_ddp,
    "ddp without buffers": lambda: with_ddp(broadcast_buffers=False),
    "ddp accumulating": lambda: with_ddp(accumulate=4),
    "fsdp before": lambda: with_fsdp(is_sharded_first=True),
    "fsdp after": lambda: with_fsdp(is_sharded_first=False),
    "around": with_fsdp_around,
    "modules differ": with_modules_that_differ,
    "cut": with_a_cut,
    "trainer": with_a_trainer_of_somebody_else,
    "freezing, ddp": lambda: with_freezing(DistributedDataParallel),
    "freezing, fsdp": lambda: with_freezing(sharded),
}
TRAINED = [name for name in CASES if name.startswith(("ddp", "fsdp"))]


def every_case() -> dict[str, Any]:
    return {name: case() for name, case in CASES.items()}


@pytest.fixture(scope="module")
def world() -> list[dict[str, Any]]:
    """What both ranks of one world say of all cases."""
    return run_world(every_case, 2)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The same training in one process, on whole batches."""
    model = Net()
    return train(bound(model), model)


@pytest.mark.parametrize("case", TRAINED)
def test_ranks_agree_bit_for_bit_in_ranges_and_int8(world, case):
    first, second = (rank[case] for rank in world)
    for part in ("last", "int8", "output"):
        assert same(first[part], second[part]), part


@pytest.mark.parametrize("case", TRAINED)
def test_ranges_of_a_step_are_those_of_the_whole_batch(world, alone, case):
    """Of the first step exactly: inputs are not rounded yet, and the weights are the same."""
    result = world[0][case]["first"]
    assert set(result) == OBSERVED
    assert all(int(observer["steps"]) == 1 for observer in result.values())
    assert torch.allclose(ranges(result), ranges(alone["first"]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", TRAINED)
def test_a_run_on_two_ranks_is_the_run_on_one(world, alone, case, note):
    result = world[0][case]
    ours, expected = ranges(result["last"]), ranges(alone["last"])
    note(f"{case}: ranges differ by {((ours - expected).abs().max() / expected.abs().max()).item():.1e}")
    assert torch.allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE)
    codes = [name for name in alone["int8"] if name.endswith("qweight")]
    assert len(codes) == 5
    differences = torch.cat([(result["int8"][name].int() - alone["int8"][name].int()).flatten() for name in codes])
    assert differences.abs().max() <= 1
    assert (differences != 0).float().mean() < 0.01


def test_accumulated_micro_batches_are_one_batch(alone):
    model = Net()
    result = train(bound(model), model, accumulate=4)
    assert torch.allclose(ranges(result["first"]), ranges(alone["first"]), rtol=1e-6, atol=0)
    assert torch.allclose(ranges(result["last"]), ranges(alone["last"]), rtol=TOLERANCE, atol=TOLERANCE)
    assert all(int(observer["steps"]) == STEPS for observer in result["last"].values())


@pytest.mark.parametrize("case", TRAINED)
def test_one_collective_a_step_for_all_modules(world, alone, case):
    """And one for the state after the first step."""
    assert world[0][case]["calls"] == world[1][case]["calls"] == [2 * len(OBSERVED)] * (STEPS + 1)
    assert alone["calls"] == []


@pytest.mark.parametrize("case", ["fsdp before", "fsdp after"])
def test_a_sharded_model_ends_whole_and_plain(world, alone, case):
    for rank in world:
        assert rank[case]["classes"] == alone["classes"]
        assert rank[case]["tensor types"] == {"Tensor"}
        assert rank[case]["int8"].keys() == alone["int8"].keys()
    assert torch.allclose(world[0][case]["output"], alone["output"], atol=0.02 * alone["output"].abs().max().item())


@pytest.mark.parametrize("case", ["fsdp before", "fsdp after"])
def test_the_report_of_a_sharded_model_is_that_of_the_plain_one(world, case):
    model = Net()
    bound(model)
    assert world[0][case]["report"] == world[1][case]["report"] == CompressionReport.measure(model)


def test_what_cannot_be_made_plain_is_refused_when_training_begins(world):
    start = "Net cannot be made plain again: its Parameter 'table.weight' is a DTensor, and neither its module nor one"
    assert all(rank["around"]["message"].startswith(start) for rank in world)


def test_modules_that_saw_something_on_one_rank_only(world):
    first, second = (rank["modules differ"] for rank in world)
    assert same(first, second)
    assert {name: observer["pending"].tolist() for name, observer in first["before"].items()} == {
        "all": [-3.0, 2.0],
        "nan": [-math.inf, math.inf],
        "first": [-1.0, 2.0],
        "second": [-3.0, 1.0],
        "unused": [math.inf, -math.inf],
        "empty": [-3.0, 1.0],
    }
    expected = {"all": [-3, 2], "first": [-1, 2], "second": [-3, 1], "empty": [-3, 1], "nan": [0, 0], "unused": [0, 0]}
    assert {name: observer["range"].tolist() for name, observer in first["after"].items()} == expected
    counts = {name: int(observer["steps"]) for name, observer in first["after"].items()}
    assert counts == {"all": 1, "first": 1, "second": 1, "empty": 1, "nan": 0, "unused": 0}


def test_a_state_from_within_a_step_is_the_same_everywhere_and_fits_one_process(world):
    first, second = (rank["cut"] for rank in world)
    assert same(first, second)
    model = Net()
    callback = bound(model)
    callback.load_state_dict(first["state"])
    callback.on_train_begin()
    model(batches()[0].split(4)[1])
    callback.on_before_optimizer_step()
    resumed = callback.state_dict()["observers"]
    assert torch.allclose(ranges(resumed), ranges(first["after"]["observers"]), rtol=1e-6, atol=0)
    assert all(int(observer["steps"]) == 1 for observer in resumed.values())


def test_a_script_without_hooks_folds_at_every_step(world):
    first, second = (rank["trainer"] for rank in world)
    assert first["calls"] == second["calls"] == STEPS  # a forward that counts in a buffer is no graph to agree on
    assert first["steps"] == {STEPS}
    assert same(first["int8"], second["int8"])


@pytest.mark.parametrize("case", ["freezing, ddp", "freezing, fsdp"])
def test_all_ranks_freeze_at_the_same_step(world, case):
    for rank in world:
        told = rank[case]
        assert len(told["calls"]) == FROZEN_AFTER
        assert {int(observer["steps"]) for observer in told["observers"].values()} == {FROZEN_AFTER}
        assert torch.equal(told["means"][-2], told["means"][-1])
        assert "BatchNorm1d" in told["classes"]
        assert not any(name.startswith(("FSDP", "Frozen")) for name in told["classes"])
    first, second = (rank[case] for rank in world)
    moved = [not torch.equal(earlier, later) for earlier, later in pairwise(first["means"])]
    assert moved == [True, False, False]
    if "ddp" in case:  # which gives all ranks the statistics of the first before each forward
        assert torch.equal(first["means"][-1], second["means"][-1])
    assert same(first["observers"], second["observers"])
    quantized = [name for name in first["int8"] if name.endswith(("qweight", "weight_scale", "input_scale"))]
    assert quantized
    assert all(torch.equal(first["int8"][name], second["int8"][name]) for name in quantized)
