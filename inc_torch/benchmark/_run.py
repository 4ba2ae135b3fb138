"""One model, measured by all its instances."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from inc_torch.benchmark._advice import advice_on, count_classes
from inc_torch.benchmark._child import Rendezvous
from inc_torch.benchmark._cores import Placement
from inc_torch.benchmark._memory import size_of_tensors
from inc_torch.benchmark._processes import Outcome, run_forked, run_here
from inc_torch.benchmark._result import InstanceResult, ModelResult
from inc_torch.benchmark._sources import Source
from inc_torch.benchmark._task import MeasureTask
from inc_torch.core.batches import Inputs, run
from inc_torch.core.errors import InexactWarning, ModelError
from inc_torch.core.evaluation import evaluate
from inc_torch.core.modes import evaluating
from inc_torch.core.user_warning import warn_user
from inc_torch.metric import Measure
from inc_torch.quantizers import Int8Module

__all__ = ["AccuracyTask", "accuracy_of", "can_fork", "measured"]


def can_fork(*models: nn.Module) -> bool:
    """Whether instances are processes: on Linux, with models on the CPU, as CUDA does not survive a fork."""
    devices = {tensor.device.type for model in models for tensor in [*model.parameters(), *model.buffers()]}
    return sys.platform == "linux" and hasattr(os, "fork") and devices <= {"cpu"}


def measured(
    source: Source, placements: Sequence[Placement], task: MeasureTask, accuracy: float | None
) -> tuple[ModelResult, list[dict[str, Any]]]:
    """Return what the instances measured, and the rows of a profile if one was asked for.

    Raises:
        ModelError: All instances failed.
    """
    _import_what_captures(source.model)
    outcomes = run_forked(placements, task) if can_fork(source.model) else [run_here(placements[0], task)]
    _require_one(source, outcomes)
    size = size_of_tensors(source.model)
    found: dict[str, Any] = next(outcome.found for outcome in outcomes if outcome.found is not None)
    notes = [*dict.fromkeys(note for outcome in outcomes if outcome.found for note in outcome.found["notes"])]
    notes += advice_on(source.model, found["kernels"])
    result = ModelResult(
        name=source.name,
        instances=tuple(_instance(outcome, size) for outcome in outcomes),
        size=size,
        kernels=found["kernels"],
        modules=count_classes(source.model),
        inputs=found["inputs"],
        accuracy=accuracy,
        notes=tuple(notes),
    )
    return result, found["profile"]


def _import_what_captures(model: nn.Module) -> None:
    """Import what a first forward would import that captures a graph: else it counts as memory of the model."""
    if any(
        isinstance(module, Int8Module) or getattr(module, "_compiled_call_impl", None) for module in model.modules()
    ):
        importlib.import_module("torch._dynamo")


def _instance(outcome: Outcome, size: int) -> InstanceResult:
    found, index = outcome.found, outcome.placement.index
    if found is None:
        return InstanceResult(index, failure=outcome.failure)
    return InstanceResult(
        index=index,
        cpus=tuple(found["cpus"]) if outcome.placement.cpus else (),
        threads=found["threads"],
        batch_size=found["batch_size"],
        seconds=tuple(found["seconds"]),
        samples=sum(found["samples"]),
        memory=None if found["growth"] is None else size + found["growth"],
    )


def _require_one(source: Source, outcomes: Sequence[Outcome]) -> None:
    """Raise if no instance is through, and warn if some are not."""
    failed = [outcome for outcome in outcomes if outcome.found is None]
    if not failed:
        return
    first = failed[0]
    story = (first.failure or "").strip()
    which = f"{len(failed)} of {len(outcomes)} instance{'s' * (len(outcomes) > 1)} of {source.name} failed"
    if len(failed) == len(outcomes):
        message = f"{which}. What happened in instance {first.placement.index}:\n{story}"
        raise ModelError(message)
    message = (
        f"{which}; numbers are those of the others. Instance {first.placement.index} says: "
        f"{story.splitlines()[0]}. All of it is in result.model.instances[{first.placement.index}].failure."
    )
    warn_user(message, InexactWarning)


@final
@dataclass(frozen=True, slots=True)
class AccuracyTask:
    """Evaluates a model, in a process of its own.

    Attributes:
        model: The model.
        data: Labelled batches.
        measure: What is measured on them.
        reference: The float model, for metrics that compare with its outputs.
    """

    model: nn.Module
    data: Iterable[Any]
    measure: Measure
    reference: nn.Module

    def __call__(self, placement: Placement, rendezvous: Rendezvous) -> dict[str, Any]:  # noqa: ARG002  a task
        """Return the accuracy as plain values."""
        return {"accuracy": evaluate(self.model, self.data, self.measure, reference=self._reference_output)}

    def _reference_output(self, inputs: Inputs) -> object:
        with evaluating(self.reference), torch.no_grad():
            return run(self.reference, inputs)


def accuracy_of(source: Source, task: AccuracyTask, placement: Placement) -> float:
    """Return the accuracy.

    Raises:
        ModelError: The evaluation failed; with its trace.
    """
    runs: Callable[[], Outcome] = (
        (lambda: run_forked([placement], task)[0])
        if can_fork(task.model, task.reference)
        else (lambda: run_here(placement, task))
    )
    outcome = runs()
    if outcome.found is None:
        message = f"The accuracy of {source.name} could not be measured:\n{(outcome.failure or '').strip()}"
        raise ModelError(message)
    return float(outcome.found["accuracy"])
