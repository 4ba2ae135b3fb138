"""A compiled model under fake-quant: the same ranges and values, in graphs that are compiled once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from inc_torch.quantizers import QuantSpec, enable_fake_quant, fold_ranges, observer_state, prepare_fake_quant

# torch.compile trips over deprecations of torch's own.
pytestmark = pytest.mark.filterwarnings("default")
STEPS = 6


def trained(backend: str | None) -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = model if backend is None else torch.compile(model, backend=backend)
    gradients = []
    for step in range(STEPS):
        loss = run(torch.randn(5, 8) * (1 + step)).square().mean()
        loss.backward()
        gradients.append(model[0].weight.grad.clone())
        fold_ranges(model)
        optimizer.step()
        optimizer.zero_grad()
    return model, gradients


def test_a_compiled_model_trains_as_the_eager_one():
    torch._dynamo.reset()
    counters.clear()
    (eager, expected), (compiled, got) = trained(None), trained("aot_eager")
    for name, entry in observer_state(eager).items():
        torch.testing.assert_close(observer_state(compiled)[name]["range"], entry["range"], rtol=1e-5, atol=1e-6)
        assert int(observer_state(compiled)[name]["steps"]) == STEPS
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert sum(counters["graph_break"].values()) == 0
    assert counters["stats"]["unique_graphs"] <= 2  # without ranges, in the first step, and with them
