"""Timing of calls: the first are the warm-up, and between it and the rest all instances meet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, final

import torch

__all__ = ["Stopwatch"]

Value = TypeVar("Value")


@final
@dataclass(slots=True)
class Stopwatch:
    """Times one call after the other.

    Attributes:
        warmup: Calls that do not count.
        begin: What is done once, before the first call that counts.
        device: Where the calls compute; a CUDA device is waited for.
        seconds: Of each call.
        samples: Of each call.

    Example:
        >>> watch = Stopwatch(warmup=1, begin=lambda: print("warm"), device=torch.device("cpu"))
        >>> [watch.time(lambda: None, samples=4) for _ in range(3)] and len(watch.seconds)
        warm
        3
        >>> watch.left_out(), watch.samples
        (1, [4, 4, 4])
    """

    warmup: int
    begin: Callable[[], object]
    device: torch.device
    seconds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def time(self, call: Callable[[], Value], samples: int) -> Value:
        """Do ``call``, note how long it took, and return what it returned."""
        if len(self.seconds) == self.warmup:
            self.begin()
        self._finish()
        began = time.perf_counter()
        value = call()
        self._finish()
        self.seconds.append(time.perf_counter() - began)
        self.samples.append(samples)
        return value

    def left_out(self) -> int:
        """How many calls to leave out: the warm-up, and less where nothing would be left."""
        if len(self.seconds) > self.warmup:
            return self.warmup
        return int(len(self.seconds) > 1)

    def _finish(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
