"""The eleven hooks of a training loop, and where each one stands in it.

::

    manager.on_train_begin(dataloader)
    for epoch in range(epochs):
        manager.on_epoch_begin(epoch)
        for index, batch in enumerate(dataloader):
            manager.on_step_begin(index)                 # masks change here, before the forward
            output = model(**batch)
            loss = manager.on_after_compute_loss(batch, output, loss_function(output))
            loss.backward()
            manager.on_before_optimizer_step()           # gradients are complete: scores are taken
            optimizer.step()
            manager.on_after_optimizer_step()            # weights are masked again, the step counts
            optimizer.zero_grad()
            manager.on_step_end()
        manager.on_epoch_end()
        manager.on_before_eval()
        evaluate(model)
        manager.on_after_eval()
    manager.on_train_end()                               # masks final, taps off, int8 conversion

A *step* is one optimizer step. With gradient accumulation ``on_step_begin`` and
``on_after_compute_loss`` run for every micro-batch, the two optimizer hooks for every update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import final
from weakref import WeakSet

from torch.optim import Optimizer

from inc_torch.core.ranks import Ranks

__all__ = ["HOOKS", "UNDO_HOOKS", "Phase", "Progress", "Stage"]

HOOKS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_after_compute_loss",
    "on_before_optimizer_step",
    "on_after_optimizer_step",
    "on_step_end",
    "on_epoch_end",
    "on_before_eval",
    "on_after_eval",
    "on_train_end",
)

UNDO_HOOKS = frozenset({"on_after_optimizer_step", "on_step_end", "on_epoch_end", "on_after_eval", "on_train_end"})
"""Hooks that run in the opposite order of stages: who came first leaves last."""


class Stage(IntEnum):
    """What a callback does to the model decides when it runs; the order of configs does not.

    Lower stages act first on the way in and last on the way out, so that at the end of training
    masks are applied, then taps removed, and only then modules converted.
    """

    REWRITE = 1
    """Exchanges modules: quantization-aware training, precision."""
    OBSERVE = 2
    """Looks and adds to the loss: distillation, and user callbacks unless they say otherwise."""
    MASK = 3
    """Writes zeros into weights: pruning."""


@final
@dataclass(frozen=True, slots=True)
class Phase:
    """What a technique does from one optimizer step to another.

    Attributes:
        technique: Who does it, in a word.
        what: What is done, in a few.
        begin: The first step of it, from 0.
        end: The last step of it; None if it lasts as long as the training.

    Example:
        >>> Phase("pruning", "4x1 to 50 %", 100, 400).steps
        '100 - 400'
    """

    technique: str
    what: str
    begin: int
    end: int | None = None

    @property
    def steps(self) -> str:
        """First and last step, for a table."""
        return f"{self.begin} - {'end' if self.end is None else self.end}"


@dataclass(slots=True)
class Progress:
    """How far a run is and who drives it. Shared by all callbacks of a manager; only the dispatcher writes it."""

    step: int = 0
    """Optimizer steps that really updated the weights."""
    epoch: int = -1
    """The running epoch as given to ``on_epoch_begin``; -1 before the first."""
    optimizers: WeakSet[Optimizer] = field(default_factory=WeakSet)
    """Optimizers that were seen updating the model."""
    has_unfinished_update: bool = False
    """Told while a state is saved: weights were updated, and ``on_after_optimizer_step`` is still to come."""
    ranks: Ranks = field(default_factory=Ranks)
    """The processes that train the model together."""
