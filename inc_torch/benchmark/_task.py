"""What an instance does: it warms the model up, times it, and looks at what has been run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, final

import torch
from torch import nn
from torch.utils.data import DataLoader

from inc_torch.benchmark._child import Rendezvous
from inc_torch.benchmark._cores import Placement
from inc_torch.benchmark._dispatch import dispatched_kernels, profile_rows
from inc_torch.benchmark._inputs import made_up_inputs
from inc_torch.benchmark._memory import MemoryWatch
from inc_torch.benchmark._stopwatch import Stopwatch
from inc_torch.config import BenchmarkConfig
from inc_torch.core.batches import Inputs, count_samples, described, run, split
from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.core.modes import evaluating

__all__ = ["MeasureTask"]

_FEWEST: Final = 10
_MOST: Final = 100
_SECONDS: Final = 10.0
"""Iterations on made-up data, where nobody says how many: some, and then as many as there is time for."""


@final
@dataclass(frozen=True, slots=True)
class MeasureTask:
    """Times a model, in the process of an instance.

    Attributes:
        model: The model.
        config: How often it is run.
        data: Batches; None is made-up data.
        function: The user's own benchmark, to be run instead.
        batch_size: Of made-up data.
    """

    model: nn.Module
    config: BenchmarkConfig
    data: Iterable[Any] | None
    function: Callable[[nn.Module], object] | None
    batch_size: int

    def __call__(self, placement: Placement, rendezvous: Rendezvous) -> dict[str, Any]:
        """Return plain values: seconds and samples by iteration, growth of memory, kernels, notes and others."""
        notes = self._set_interop_threads(is_own_process=bool(placement.cpus))
        if placement.spans_nodes:
            _move_to_own_node(self.model)
        device = _device_of(self.model)
        with evaluating(self.model), torch.no_grad():
            made_up = self._made_up() if self.function is None and self.data is None else None
            memory, watch = MemoryWatch(device), Stopwatch(self.config.warmup, rendezvous, device)
            memory.begin()
            seen = self._time_function(watch) if self.function is not None else self._time_batches(watch, made_up)
            found = {
                "seconds": watch.seconds[watch.left_out() :],
                "samples": watch.samples[watch.left_out() :],
                "batch_size": watch.samples[0],
                "notes": [*notes, *self._notes(watch)],
            }
            return found | self._seen_in_one_forward(seen, memory, placement)

    def _seen_in_one_forward(self, inputs: Inputs | None, memory: MemoryWatch, placement: Placement) -> dict[str, Any]:
        """What is found when nothing is timed any more."""
        if inputs is None:
            return {"growth": None, "inputs": "", "kernels": {}, "profile": []}
        growth = memory.growth(lambda: run(self.model, inputs), is_own_process=bool(placement.cpus))
        return {
            "growth": growth,
            "inputs": _shown(inputs),
            "kernels": dispatched_kernels(self.model, inputs),
            "profile": profile_rows(self.model, inputs) if self.config.diagnosis else [],
        }

    def _made_up(self) -> Inputs:
        return made_up_inputs(self.model, self.batch_size)

    def _time_batches(self, watch: Stopwatch, made_up: Inputs | None) -> Inputs:
        first: Inputs | None = None
        source = self._batches() if made_up is None else self._repeated(made_up)
        for inputs in source:
            first = first or inputs
            watch.time(lambda inputs=inputs: run(self.model, inputs), _samples(inputs))  # type: ignore[misc]
        if first is None:
            message = (
                f"The b_dataloader of type {type(self.data).__name__} gave no batch: expected at least one. A "
                "generator can be read only once; pass a DataLoader or a list."
            )
            raise ConfigError(message)
        return first

    def _batches(self) -> Iterator[Inputs]:
        """Those of the loader, which is read again where more iterations are asked for than it has batches."""
        done, wanted = 0, self.config.iteration
        data: Iterable[Any] = () if self.data is None else _without_workers(self.data)
        while True:
            before = done
            for batch in data:
                yield split(batch, self.model)[0]
                done += 1
                if done == wanted:
                    return
            if wanted < 0 or done == before:  # -1 is one pass; nothing comes from a generator a second time
                return

    def _repeated(self, inputs: Inputs) -> Iterator[Inputs]:
        began = time.perf_counter()
        for done in count():
            if self.config.iteration > 0:
                if done >= self.config.iteration:
                    return
            else:
                counted = done - self.config.warmup
                if counted >= _MOST or (counted >= _FEWEST and time.perf_counter() - began > _SECONDS):
                    return
            yield inputs

    def _time_function(self, watch: Stopwatch) -> Inputs | None:
        """Each call of the model that the user's function makes is an iteration."""
        function = self.function
        if function is None:
            return None
        began = time.perf_counter()
        with _calls_timed(self.model, watch) as seen:
            function(self.model)
        if not watch.seconds:
            watch.seconds.append(time.perf_counter() - began)
            watch.samples.append(1)
            return None
        return seen[0]

    def _notes(self, watch: Stopwatch) -> list[str]:
        notes = []
        if 0 < self.config.warmup != watch.left_out():
            ran = f"{len(watch.seconds)} iteration{'s' * (len(watch.seconds) != 1)}"
            notes.append(
                f"Only {ran} ran, so warmup={self.config.warmup} would leave nothing: {watch.left_out()} is left out. "
                "Give more batches, or set iteration."
            )
        return notes

    def _set_interop_threads(self, *, is_own_process: bool) -> list[str]:
        wanted = self.config.inter_num_of_threads
        if wanted is None or wanted == torch.get_num_interop_threads():
            return []
        if not is_own_process:
            return [f"inter_num_of_threads={wanted} has no effect: torch takes it once, and this process is yours."]
        try:
            torch.set_num_interop_threads(wanted)
        except RuntimeError:
            return [
                f"inter_num_of_threads={wanted} could not be set: torch takes it once, before the first use of these "
                f"threads, and this script has used them. It is {torch.get_num_interop_threads()}."
            ]
        return []


def _without_workers(data: Iterable[Any]) -> Iterable[Any]:
    """The same loader, without the workers that its owner may keep for it: those belong to another process."""
    if getattr(data, "_iterator", None) is None or not isinstance(data, DataLoader):
        return data
    fresh = copy.copy(data)
    fresh._iterator = None
    return fresh


@contextmanager
def _calls_timed(model: nn.Module, watch: Stopwatch) -> Iterator[list[Inputs]]:
    """Time each call of ``model``, through a subclass for the while, as hooks would change how some models run."""
    seen: list[Inputs] = []
    original = type(model)

    def call(self: nn.Module, *args: object, **kwargs: object) -> object:
        inputs = Inputs(args, kwargs)
        seen[:] = seen or [inputs]
        return watch.time(lambda: original.__call__(self, *args, **kwargs), _samples(inputs))

    model.__class__ = type(original.__name__, (original,), {"__call__": call, "__module__": original.__module__})
    try:
        yield seen
    finally:
        model.__class__ = original


def _samples(inputs: Inputs) -> int:
    try:
        return max(1, count_samples(inputs))
    except ModelError:  # no tensor: whatever it is, it is one
        return 1


def _shown(inputs: Inputs) -> str:
    return ", ".join(
        [*map(described, inputs.args), *(f"{name}={described(inputs.kwargs[name])}" for name in inputs.kwargs)]
    )


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def _move_to_own_node(model: nn.Module) -> None:
    """Copy weights, so that they lie in the memory next to this process's cores instead of the parent's."""
    for tensor in {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}.values():
        tensor.data = tensor.data.clone()
