"""A task of numbers that is trained in an instant."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.tasks.task import Phase, Task


@pytest.fixture
def trained():
    """The seeds of all trainings of `task`, in order."""
    return []


@pytest.fixture
def task(trained):
    """Tell apart which half of sixteen numbers is greater."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 16, generator=generator)
    labels = (inputs[:, :8].sum(1) > inputs[:, 8:].sum(1)).long()

    def build(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))

    def batches(steps, seed):
        trained.append(seed)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(256, (32,), generator=generator)
            yield inputs[rows], labels[rows]

    @torch.inference_mode()
    def right(model):
        return model.eval()(inputs[256:]).argmax(-1) == labels[256:]

    return Task(
        "MiniLM-L6, numbers",
        build,
        batches,
        lambda model, given: model(given),
        right,
        lambda rows: inputs[:rows],
        labels[256:],
        Phase(30, 1e-2),
        Phase(24, 1e-2),
    )
