"""Time of one forward."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from statistics import fmean, median
from typing import ClassVar, Final, final

import torch
from torch import nn

from inc_torch.core.batches import Inputs, run
from inc_torch.core.errors import ConfigError
from inc_torch.core.modes import evaluating
from inc_torch.tuning._objectives import OBJECTIVES, Objective

__all__ = ["Latency"]

_BATCHES: Final = 3
_WARM_UP: Final = 2
"""Runs of each batch that do not count: they compile, pack and allocate."""
_RUNS: Final = 5
_SECONDS: Final = 0.5


@final
@OBJECTIVES.register("latency", summary="milliseconds of one forward: the fastest model that is accurate enough")
class Latency(Objective):
    """Milliseconds of one forward, in evaluation mode and without gradients.

    The median over the runs of a batch, averaged over the first 3 batches. After 2 rounds that do not count, all
    batches are run in turn until there are 5 runs, and 0.5 seconds are over.

    Source: not in INC 2.6.1, whose ``performance`` times the evaluation with all that loads and counts in it.
    """

    representation: ClassVar[str] = "Latency (ms)"

    def measure(self, model: nn.Module, batches: Sequence[Inputs]) -> float:
        """Return the milliseconds.

        Raises:
            ConfigError: There is no batch.
        """
        chosen = list(batches[:_BATCHES])
        if not chosen:
            message = (
                "The objective 'latency' got no batch to run the model on: expected at least one. Pass a dataloader."
            )
            raise ConfigError(message)
        device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
        seconds: list[list[float]] = [[] for _ in chosen]
        with evaluating(model), torch.no_grad():
            for inputs in chosen * _WARM_UP:
                run(model, inputs)
            began = time.perf_counter()
            while sum(map(len, seconds)) < _RUNS or time.perf_counter() - began < _SECONDS:
                for inputs, own in zip(chosen, seconds, strict=True):
                    own.append(_seconds(model, inputs, device))
        return 1000 * fmean(map(median, seconds))


def _seconds(model: nn.Module, inputs: Inputs, device: torch.device) -> float:
    _finish(device)
    began = time.perf_counter()
    run(model, inputs)
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    """Wait for what an accelerator still computes."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
