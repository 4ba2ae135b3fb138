"""Threads: an int8 model answers all at once as it answers one, and a trace in one thread does not touch the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from inc_torch import QuantizationAwareTrainingConfig, optimize_for_inference, prepare_compression
from inc_torch.quantizers import is_graph
from tests.loops.driver import ConvNet
from tests.soak.cycles import Untraced, int8

THREADS, ROUNDS = 4, 25
CALL = nn.Module.__call__


@pytest.fixture(autouse=True)
def _modules_are_called_as_before():
    """A trace puts its own in place of torch's call, and has to put it back."""
    yield
    assert nn.Module.__call__ is CALL


def answers(model: nn.Module, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(batch) for batch in batches]


def batches() -> list[torch.Tensor]:
    """Of two sizes, by turns."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2 + index % 2, 3, 4, 4, generator=generator) for index in range(ROUNDS)]


def in_threads(model: nn.Module) -> None:
    """Every thread gets the very numbers that one gets alone, at its first call too."""
    start = threading.Barrier(THREADS, timeout=60)

    def work(_: int) -> list[torch.Tensor]:
        start.wait()
        return answers(model, batches())

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(work, range(THREADS)))
    expected = answers(model, batches())
    for each in found:
        for one, other in zip(each, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("approach", ["static", "dynamic"])
@pytest.mark.parametrize("kind", [ConvNet, Untraced], ids=["graph", "modules"])
def test_a_forward_in_threads(approach, kind, is_warm):
    model = int8(approach, kind)
    if is_warm:
        answers(model, batches())
    in_threads(model)


@pytest.mark.parametrize("kind", [ConvNet, pytest.param(Untraced, marks=pytest.mark.slow)], ids=["graph", "captured"])
def test_a_fast_model_in_threads(kind):
    model = optimize_for_inference(int8(kind=kind), batches()[0])
    answers(model, batches())
    in_threads(model)


def test_an_int8_model_of_a_training_in_threads():
    model = ConvNet()
    manager = prepare_compression(model, QuantizationAwareTrainingConfig())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    manager.on_train_begin()
    for batch in batches()[:2]:
        model(batch).square().mean().backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
    manager.on_train_end()
    answers(model.eval(), batches())
    in_threads(model)


class Meanwhile(nn.Module):
    """Something happens in another thread while its forward runs."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.__dict__["act"] = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        thread = threading.Thread(target=self.act)
        thread.start()
        thread.join(60)
        return self.layer(x)


def test_a_trace_leaves_other_threads_alone():
    """torch.fx records the calls of all modules meanwhile; those of other models go through, checkpoints too."""
    torch.manual_seed(0)
    other, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4, requires_grad=True)
    expected, found = other(x), []

    def act() -> None:
        found.append((other(x), *(checkpoint(other, x, use_reentrant=each) for each in (False, True))))

    model = nn.Sequential(Meanwhile(act), nn.Linear(4, 2))
    prepare_compression(model, QuantizationAwareTrainingConfig()).on_train_begin()
    assert is_graph(model)
    assert len(found) == 2  # the model is traced in both modes
    for outputs in found:
        assert all(torch.equal(output, expected) for output in outputs)
