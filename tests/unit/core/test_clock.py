"""The clock alone: optimizers seen, updates claimed, weights compared."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from inc_torch.core.clock import SAMPLES, UpdateClock


class Watched:
    """A clock over one layer, and what it was told."""

    def __init__(self, layer=None, watched=None):
        self.layer = layer or nn.Linear(2, 1)
        self.seen, self.stepped = [], []
        parameters = (lambda: [watched]) if watched is not None else self.layer.parameters
        self.clock = UpdateClock(
            parameters, self.layer.parameters, lambda *event: self.seen.append(event), self.stepped.append
        )
        self.clock.start()

    def step(self, optimizer):
        for parameter in self.layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


@pytest.fixture
def watched():
    made = Watched()
    yield made
    made.clock.stop()


def test_start_and_stop_may_be_repeated(watched):
    watched.clock.start()
    assert watched.clock.is_running
    optimizer = torch.optim.SGD(watched.layer.parameters())
    watched.step(optimizer)
    assert len(watched.seen) == 1
    watched.clock.stop()
    watched.clock.stop()
    assert not watched.clock.is_running
    watched.step(optimizer)
    assert len(watched.seen) == 1


def test_an_update_is_claimed_once(watched):
    optimizer = torch.optim.SGD(watched.layer.parameters())
    assert not watched.clock.has_seen_optimizer
    assert not watched.clock.claim()
    watched.step(optimizer)
    assert watched.stepped == [optimizer]
    assert watched.clock.has_seen_optimizer
    assert watched.clock.claim()
    assert not watched.clock.claim()


def test_it_is_told_of_a_step_that_nobody_claimed(watched):
    optimizer = torch.optim.SGD(watched.layer.parameters())
    watched.step(optimizer)
    watched.step(optimizer)
    watched.clock.claim()
    watched.step(optimizer)
    assert watched.seen == [(optimizer, False), (optimizer, True), (optimizer, False)]


@pytest.mark.parametrize("by_name", [True, False])
def test_a_closure_computes_gradients_before_it_is_told(watched, by_name):
    optimizer = torch.optim.LBFGS(watched.layer.parameters(), max_iter=3)
    had_gradient = []
    watched.clock._on_optimizer = lambda *_: had_gradient.append(watched.layer.weight.grad is not None)

    def closure():
        optimizer.zero_grad()
        loss = watched.layer(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss.detach()

    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert had_gradient == [True]
    assert loss > 0
    assert watched.clock.claim()


def test_found_inf_is_no_update(watched):
    optimizer = torch.optim.SGD(watched.layer.parameters(), fused=True)
    optimizer.found_inf = torch.tensor(1.0)
    watched.step(optimizer)
    assert not watched.clock.claim()
    optimizer.found_inf = torch.tensor(0.0)
    watched.step(optimizer)
    assert watched.clock.claim()


def test_parameters_are_looked_up_at_each_event():
    layer = nn.Linear(2, 1)
    watched = Watched(layer)
    layer.weight = nn.Parameter(torch.ones(1, 2))
    layer.bias = None
    watched.step(torch.optim.SGD([layer.weight]))
    assert len(watched.seen) == 1
    watched.clock.stop()


def test_optimizers_without_our_parameters_are_nothing_to_it():
    layer = nn.Linear(2, 1)
    watched = Watched(layer, layer.weight)
    watched.step(torch.optim.SGD([layer.bias]))
    assert watched.seen == []
    assert not watched.clock.has_seen_optimizer
    watched.clock.stop()


def test_without_an_optimizer_the_weights_tell(watched):
    watched.clock.mark()
    assert not watched.clock.claim()
    with torch.no_grad():
        watched.layer.bias += 1e-7
    assert watched.clock.claim()
    watched.clock.mark()
    assert not watched.clock.claim()


def test_without_a_mark_nothing_is_known(watched):
    with torch.no_grad():
        watched.layer.bias += 1
    assert not watched.clock.claim()


def test_once_an_optimizer_was_seen_weights_are_not_looked_at(watched):
    watched.step(torch.optim.SGD(watched.layer.parameters()))
    assert watched.clock.claim()
    watched.clock.mark()
    with torch.no_grad():
        watched.layer.bias += 1
    assert not watched.clock.claim()


def test_frozen_weights_are_not_looked_at(watched):
    watched.layer.bias.requires_grad_(False)
    watched.clock.mark()
    with torch.no_grad():
        watched.layer.bias += 1
    assert not watched.clock.claim()


@pytest.mark.parametrize("size", [0, 1, SAMPLES - 1, SAMPLES, SAMPLES + 1, 10 * SAMPLES + 7])
def test_samples_are_few_and_spread_over_the_whole(size):
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.arange(float(size)))
    watched = Watched(layer)
    (sampled,) = watched.clock._sampled()
    assert len(sampled) <= SAMPLES
    assert len(sampled) >= min(size, SAMPLES // 2)
    if size:
        assert sampled[0] == 0
        assert sampled[-1] > size * 0.99 - 2
    watched.clock.stop()


def test_a_dense_update_of_a_large_weight_is_seen_in_any_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layer = nn.Linear(300, 300, bias=False, dtype=dtype)
        watched = Watched(layer)
        watched.clock.mark()
        with torch.no_grad():
            layer.weight -= 0.01 * torch.sign(layer.weight)
        assert watched.clock.claim()
        watched.clock.stop()


def test_state_is_plain_and_comes_back(watched):
    first, second = torch.optim.SGD([watched.layer.weight]), torch.optim.SGD([watched.layer.bias])
    watched.step(second)
    state = watched.clock.state_dict()
    assert state == {"has_seen_optimizer": True, "has_update": True, "stepped": [1]}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)

    other = Watched()
    other.clock.load_state_dict(torch.load(file, weights_only=True))
    assert other.clock.state_dict() == state
    first, second = torch.optim.SGD([other.layer.weight]), torch.optim.SGD([other.layer.bias])
    other.step(first)
    other.step(second)
    assert other.seen == [(first, False), (second, True)]
    assert other.clock.claim()
    other.step(second)
    assert other.seen[2:] == [(second, False)]
    other.clock.stop()
