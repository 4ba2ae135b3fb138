"""What a search needs: a model, data to calibrate on, and batches to which the answers have to stay those in float."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from common.latency import in_turns

Inputs = dict[str, torch.Tensor] | torch.Tensor
Batch = tuple[Inputs, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A model in float, and what it is tuned with.

    Attributes:
        model: In evaluation mode.
        rebuild: Makes the module again, with any weights, to load an int8 model into.
        calibration: Inputs and labels; ranges take the inputs alone, the strategy hawq_v2 takes both.
        evaluation: What the search evaluates on: inputs, and the float model's answers.
        test: The same of other inputs, which the search never sees.
        labelled: The inputs of the test with their true labels, if these are known.
        tolerable_loss: The part of the answers that may be others than in float.
    """

    model: nn.Module
    rebuild: Callable[[], nn.Module]
    calibration: list[Batch]
    evaluation: list[Batch]
    test: list[Batch]
    labelled: list[Batch]
    tolerable_loss: float


@torch.no_grad()
def answers(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """The class that the model finds most likely, for each input of a batch."""
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return getattr(output, "logits", output).argmax(-1)


def answered(model: nn.Module, batches: Iterable[Inputs]) -> list[Batch]:
    """Batches with the answers of ``model`` as their labels."""
    return [(inputs, answers(model, inputs)) for inputs in batches]


def agreement(model: nn.Module, batches: Iterable[Batch]) -> float:
    """The share of inputs to which ``model`` gives the answers beside them."""
    same = [answers(model, inputs) == labels for inputs, labels in batches]
    return torch.cat(same).float().mean().item()


def milliseconds(models: Mapping[str, nn.Module], inputs: Inputs, *, rounds: int = 9) -> dict[str, float]:
    """The median processor time of a forward, one thread, for each model; they take turns in one process."""
    calls = {name: partial(answers, model, inputs) for name, model in models.items()}
    return in_turns(calls, rounds=rounds, warm_up=2, clock=time.process_time)
