"""Training a graph in several processes: equal ranges everywhere, and one decision about the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from inc_torch import QuantizationAwareTrainingConfig, prepare_compression
from inc_torch.core.errors import InexactWarning
from inc_torch.quantizers import is_graph
from tests.distributed.worlds import run_world

STEPS = 3


class Net(nn.Module):
    """A convolution with its normalization, added to what it reads."""

    def __init__(self, odd_rank: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.norm = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)
        self.odd_rank = odd_rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_odd = self.odd_rank == distributed.get_rank() and not isinstance(x, torch.Tensor)  # in a trace
        x = torch.relu(self.stem(x))
        y = self.last(torch.relu(self.norm(self.conv(x)) + x))
        return y * 2 if is_odd else y


def trained(odd_rank: int | None) -> tuple[dict[str, torch.Tensor], bool]:
    model = Net(odd_rank)
    wrapped = DistributedDataParallel(model)
    manager = prepare_compression(wrapped, QuantizationAwareTrainingConfig())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(1 + distributed.get_rank())
    manager.on_train_begin()
    for _ in range(STEPS):
        wrapped.train()(torch.randn(4, 2, 5, 5, generator=generator)).square().mean().backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        optimizer.zero_grad()
        manager.on_after_optimizer_step()
    manager.on_train_end()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("norm.")}
    return state, is_graph(model)


def in_a_world() -> Any:
    return trained(None)


def with_an_odd_rank() -> Any:

    with pytest.warns(InexactWarning, match="not as a graph") as caught:
        result = trained(1)
    return *result, [str(warning.message) for warning in caught if warning.category is InexactWarning]


def test_ranks_learn_equal_ranges_and_become_equal_int8_models() -> None:
    first, second = run_world(in_a_world, 2)
    assert first[1]
    assert second[1]
    grids = {name for name in first[0] if name.endswith(("scale", "zero_point"))}
    assert any(name.startswith("_inc_torch_snaps") for name in grids)
    for name in grids:
        assert torch.equal(first[0][name], second[0][name])
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0] if name.endswith("qweight"))


def test_a_graph_that_one_rank_refuses_is_used_by_none() -> None:
    first, second = run_world(with_an_odd_rank, 2)
    assert not first[1]
    assert not second[1]
    assert any("in another process" in message for message in first[2])
    assert any("gives something else" in message for message in second[2])
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0] if name.endswith("qweight"))
