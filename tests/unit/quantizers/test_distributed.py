"""Ranges under data parallelism: the extremes of all processes, on every one of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributed
from torch import multiprocessing as processes

from inc_torch.quantizers._observer import InputRange


def observe_in_process(rank, address, results):
    """Observe batches that differ from rank to rank; the second is empty on rank 0, the third infinite on rank 1."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    seen = InputRange()
    history = []
    for batch in (
        [torch.tensor([-1.0, 2.0]), torch.tensor([-4.0, 1.0])],
        [torch.empty(0), torch.tensor([-2.0, 8.0])],
        [torch.tensor([9.0]), torch.tensor([float("inf")])],
    ):
        seen.observe(batch[rank])
        history.append((seen.low, seen.high, seen.batches))
    results[rank] = history
    distributed.destroy_process_group()


@pytest.fixture
def other_rank(monkeypatch):
    """Pretend that a second process reduces with ours; returns the list of (-low, high) that it contributes."""
    contributions = []

    def reduce(tensor, op):
        assert op == distributed.ReduceOp.MAX
        tensor.copy_(torch.maximum(tensor, torch.tensor(contributions.pop(0))))

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", reduce)
    return contributions


def test_extremes_of_the_other_rank_count(other_rank):
    other_rank += [(4.0, 1.0), (2.0, 8.0), (0.0, math.inf), (-math.inf, -math.inf)]
    seen = InputRange()
    seen.observe(torch.tensor([-1.0, 2.0]))
    assert seen == InputRange(-4.0, 2.0, 1)
    seen.observe(torch.empty(0))
    assert seen == InputRange(-3.0, 5.0, 2)
    seen.observe(torch.tensor([9.0]))
    seen.observe(torch.empty(0))
    assert seen == InputRange(-3.0, 5.0, 2)


@pytest.mark.slow
def test_ranges_are_those_of_all_ranks(tmp_path):
    with processes.Manager() as manager:
        results = manager.dict()
        processes.spawn(observe_in_process, args=(tmp_path / "store", results), nprocs=2)
        first, second = results[0], results[1]
    assert first == second == [(-4.0, 2.0, 1), (-3.0, 5.0, 2), (-3.0, 5.0, 2)]
