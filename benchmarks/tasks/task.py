"""What is trained, and the loop that trains it: dense, or compressed while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from transformers import get_linear_schedule_with_warmup

from inc_torch import CompressionManager, CompressionReport, prepare_compression
from inc_torch.callbacks import Callback, TrainingConfig

Inputs = dict[str, torch.Tensor] | torch.Tensor
QUICK_STEPS = 24
FLOAT_BITS = 32


@dataclass(frozen=True)
class Phase:
    """A part of the training: the learning rate climbs over a tenth of the steps, and falls to zero over the rest."""

    steps: int
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.steps}x{self.learning_rate:g}"


@dataclass(frozen=True)
class Task:
    """A model and its data.

    Attributes:
        name: Of the model and the data, for tables.
        build: Makes the model as it is before the first phase, from a seed.
        batches: Yields inputs and labels for a number of steps, in an order that follows from a seed.
        logits: What the model answers to inputs, in training.
        right: For each item of the test set, whether the model's answer is the label; leaves it in evaluation mode.
        sample: Makes inputs of so many rows, of one size, to measure time with.
        test_labels: Labels of the test set.
        first: Makes the dense baseline.
        second: Goes on from it, dense or compressed.
    """

    name: str
    build: Callable[[int], nn.Module]
    batches: Callable[[int, int], Iterable[tuple[Inputs, torch.Tensor]]]
    logits: Callable[[nn.Module, Inputs], torch.Tensor]
    right: Callable[[nn.Module], torch.Tensor]
    sample: Callable[[int], Inputs]
    test_labels: torch.Tensor
    first: Phase
    second: Phase

    @property
    def phases(self) -> str:
        """Steps and learning rates, for names of files."""
        return f"{self.first}-{self.second}"

    @property
    def slug(self) -> str:
        """The name, for names of files."""
        return "-".join(self.name.replace(",", "").split())

    @property
    def guess(self) -> float:
        """The accuracy, in points, of always giving the answer that is most often right."""
        return 100 * (self.test_labels.bincount().max() / len(self.test_labels)).item()

    def shortened(self) -> Task:
        """The same with few steps in each phase."""
        first, second = (replace(phase, steps=QUICK_STEPS) for phase in (self.first, self.second))
        return replace(self, first=first, second=second)


def train(
    task: Task,
    model: nn.Module,
    phase: Phase,
    seed: int,
    configs: Sequence[TrainingConfig] = (),
    teacher_logits: Iterable[torch.Tensor | None] = repeat(None),
) -> CompressionManager:
    """Train all weights for a phase.

    Args:
        task: Says how.
        model: Is changed in place.
        phase: Steps and learning rate.
        seed: Of the order of the data.
        configs: What compresses the model meanwhile.
        teacher_logits: What a teacher answers to the batch of each step, if there is one.
    """
    optimizer = AdamW(model.parameters(), lr=phase.learning_rate, weight_decay=0.01, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, phase.steps // 10, phase.steps)
    manager = prepare_compression(model, list(configs) or Callback())
    model.train()
    manager.on_train_begin()
    for step, ((inputs, labels), taught) in enumerate(
        zip(task.batches(phase.steps, seed), teacher_logits, strict=False)
    ):
        manager.on_step_begin(step)
        logits = task.logits(model, inputs).float()
        loss = manager.on_after_compute_loss(inputs, logits, cross_entropy(logits, labels), taught)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        scheduler.step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()
    return manager


def once(file: Path, model: nn.Module, make: Callable[[nn.Module], object]) -> nn.Module:
    """The model with the weights in the file; if there is none, ``make`` trains it and they are written."""
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        make(model)
        part = file.with_suffix(".part")
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, part)
        part.rename(file)
    return model


def baseline(task: Task, seed: int, folder: Path) -> nn.Module:
    """The model after the first phase, from its file or trained now."""
    file = folder / f"{task.slug}-{task.first}-{seed}.safetensors"
    return once(file, task.build(seed), lambda model: train(task, model, task.first, seed))


def is_float(model: nn.Module) -> bool:
    """Whether every weight is one."""
    return all(row.bits == FLOAT_BITS for row in CompressionReport.measure(model).modules)
