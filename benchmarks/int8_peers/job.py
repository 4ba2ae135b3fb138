"""What a candidate is given: a model with its weights and data, and the number of threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.int8_peers.models import MODELS, Model

Inputs = tuple[Tensor, ...]
Made = TypeVar("Made")
# Takes the tensors of `Job.example`, returns a tensor or, of a decoder, three.
Runner = Callable[..., Any]


class NotRunError(Exception):
    """The candidate has no way to run the model; the message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """One model at one batch size and number of threads, for one candidate.

    Attributes:
        model: What is measured.
        core: Its module with the weights, in float32.
        data: What `material` made.
        threads: How many threads the candidate may use.
        scratch: A folder for files that other jobs of the same candidate, model and batch size may read again.
        kept: What `once` made, by name.
    """

    model: Model
    core: nn.Module
    data: dict[str, Any]
    threads: int
    scratch: Path
    kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, material: Path, name: str, batch: int, threads: int, scratch: Path) -> Job:
        """Read a job from the folder of material."""
        model = MODELS[name]
        core = model.build()
        core.load_state_dict(torch.load(material / f"{name}.weights.pt", weights_only=True, mmap=True))
        data = torch.load(material / f"{name}-{batch}.data.pt", weights_only=True)
        return cls(model, core.eval(), data, threads, scratch)

    def on(self, threads: int) -> Job:
        """Return the same job for another number of threads."""
        return dataclasses.replace(self, threads=threads)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """Make something that does not depend on the number of threads, the first time that it is asked for."""
        if name not in self.kept:
            self.kept[name] = make()
        made: Made = self.kept[name]
        return made

    @property
    def served(self) -> nn.Module:
        """The module that takes tensors by position."""
        return self.model.served(self.core)

    @property
    def example(self) -> Inputs:
        """The inputs that are timed; of a decoder, those of one step."""
        return tuple(self.data["example"])

    @property
    def calibration(self) -> list[Inputs]:
        """Other inputs, to observe ranges on."""
        return [tuple(inputs) for inputs in self.data["calibration"]]


def in_channels_last(job: Job) -> nn.Module:
    """The served module, with the weights of convolutions in the memory format that PyTorch advises for CPUs."""
    module = job.served
    return module.to(memory_format=torch.channels_last) if job.model.kind == "vision" else module
