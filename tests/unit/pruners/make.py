"""Short ways to specs, models and training steps for the tests of the pruners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from inc_torch.pruners import ALLOCATIONS, CRITERIA, SCHEDULES, Pruner, PrunerSpec, parse_pattern


def spec_of(
    pattern: str = "1x1",
    criterion: str = "magnitude",
    *,
    schedule: str = "linear",
    scope: str = "global",
    target: float = 0.5,
    **options: Any,
) -> PrunerSpec:
    return PrunerSpec(
        criterion=CRITERIA.get(criterion)(),
        pattern=parse_pattern(pattern),
        pattern_text=pattern,
        schedule=SCHEDULES.get(schedule)(),
        allocation=ALLOCATIONS.get(scope)(),
        target=target,
        **options,
    )


def stack(*layers: nn.Module) -> nn.Sequential:
    """The layers with a ReLU behind them, so that none is a classifier head."""
    return nn.Sequential(*layers, nn.ReLU())


def mlp() -> nn.Sequential:
    """Two prunable layers of different size, and a head."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def backward(model: nn.Module, inputs: int = 8) -> None:
    """Fill the gradients from random data."""
    model.zero_grad()
    model(torch.randn(5, inputs)).square().sum().backward()


def zeros(module: nn.Module) -> int:
    return int((module.weight == 0).sum())


def run(
    pruner: Pruner,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    each: Callable[[int], None] = lambda step: None,
) -> None:
    """Training steps as a callback would drive them; ``each`` is called before each step."""
    for step in steps:
        each(step)
        pruner.begin_step(step)
        backward(model)
        pruner.collect_scores()
        optimizer.step()
        pruner.mask_weights()
        pruner.mask_momentum(optimizer)
