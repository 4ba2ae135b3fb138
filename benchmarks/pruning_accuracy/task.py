"""What is trained, and the loop that trains it: dense, or pruned while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from transformers import get_linear_schedule_with_warmup

from inc_torch import CompressionManager, CompressionReport, WeightPruningConfig, prepare_pruning

Inputs = dict[str, torch.Tensor] | torch.Tensor
QUICK_STEPS = 24
UPDATES = 24  # new masks come once in this part of the training, from its second to its twelfth


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
        test_labels: Labels of the test set.
        first: Makes the dense baseline.
        second: Goes on from it, dense or pruned.
    """

    name: str
    build: Callable[[int], nn.Module]
    batches: Callable[[int, int], Iterable[tuple[Inputs, torch.Tensor]]]
    logits: Callable[[nn.Module, Inputs], torch.Tensor]
    right: Callable[[nn.Module], torch.Tensor]
    test_labels: torch.Tensor
    first: Phase
    second: Phase

    @property
    def phases(self) -> str:
        """Steps and learning rates, for names of files."""
        return f"{self.first}-{self.second}"

    @property
    def guess(self) -> float:
        """The accuracy, in points, of always giving the answer that is most often right."""
        return 100 * (self.test_labels.bincount().max() / len(self.test_labels)).item()

    def shortened(self) -> Task:
        """The same with few steps in each phase."""
        first, second = (replace(phase, steps=QUICK_STEPS) for phase in (self.first, self.second))
        return replace(self, first=first, second=second)


@dataclass(frozen=True)
class Case:
    """What is pruned, how much of it, and whether the layers are ranked together (global) or each alone (local)."""

    pattern: str
    sparsity: float
    scope: str = "global"

    def config(self, criterion: str, steps: int) -> WeightPruningConfig:
        """Prune in eleven updates up to the middle of the training; the rest of it is for recovery."""
        frequency = steps // UPDATES
        return WeightPruningConfig(
            pruning_type=criterion,
            pattern=self.pattern,
            target_sparsity=self.sparsity,
            pruning_scope=self.scope,
            sparsity_decay_type="exp",
            start_step=2 * frequency,
            end_step=steps // 2,
            pruning_frequency=frequency,
        )

    def check(self, report: CompressionReport) -> None:
        """Compare what was reached with what was asked for.

        Units are counted by the pruner, zeros in the weights. There may be more zeros: a weight that comes back, as
        with the criterion ``gradient``, starts at zero and stays there if its gradient is zero ever after. And the
        inputs of layers are units of many sizes, so that of ``channelx1`` only their number is what was asked for.

        Raises:
            RuntimeError: It is something else.
        """
        rows = [row for row in report.modules if row.units]
        units, pruned = sum(row.units or 0 for row in rows), sum(row.pruned_units or 0 for row in rows)
        least = 0.0 if "channel" in self.pattern else pruned / units
        rounded = 1 if self.scope == "global" else len(rows)  # each budget is a whole number of units
        if abs(pruned - self.sparsity * units) > rounded or report.sparsity < least - 1e-6:
            message = f"{self.pattern}: {pruned} of {units} units and {report.sparsity:.4f} of the weights are pruned; "
            raise RuntimeError(message + f"expected {self.sparsity}.")


def train(
    task: Task, model: nn.Module, phase: Phase, seed: int, config: WeightPruningConfig | None = None
) -> CompressionManager | None:
    """Train all weights for a phase, and prune them if there is a ``config``; its manager is returned then."""
    optimizer = AdamW(model.parameters(), lr=phase.learning_rate, weight_decay=0.01, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, phase.steps // 10, phase.steps)
    manager = None if config is None else prepare_pruning(model, config, optimizer)
    model.train()
    for inputs, labels in task.batches(phase.steps, seed):
        cross_entropy(task.logits(model, inputs).float(), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    if manager is not None:
        manager.on_train_end()
    return manager
