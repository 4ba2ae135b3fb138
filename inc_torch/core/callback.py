"""The base of every callback, ours and yours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from inc_torch.core.hooks import Phase, Progress, Stage
from inc_torch.core.report import Finding

__all__ = ["Callback"]


class Callback:
    """Something that takes part in training: eleven hooks that do nothing until overridden.

    Subclass it, override what you need, and put an instance into the list given to
    `prepare_compression`, beside or instead of config objects.

    Attributes:
        stage: When it runs among the others, see `Stage`.
        state_version: Raised when the shape of `state_dict` changes.
        exact_when_late: Hooks that a loop may leave out without loss: what this callback does there is the same when
            the dispatcher does it just before or after the optimizer steps. No warning then for its sake.
        model: The user's model, set by `prepare`.
        progress: Steps and epochs of the run, kept by the dispatcher.

    Example:
        >>> from inc_torch.core.callback import Callback
        >>> class Count(Callback):
        ...     steps = 0
        ...     def on_after_optimizer_step(self) -> None:
        ...         self.steps += 1
    """

    stage: ClassVar[Stage] = Stage.OBSERVE
    state_version: ClassVar[int] = 1
    exact_when_late: ClassVar[frozenset[str]] = frozenset()

    model: nn.Module
    progress: Progress

    def prepare(self, model: nn.Module, progress: Progress) -> None:
        """Bind to the model, before weights are loaded and before the optimizer exists.

        Changes to the model's structure belong here. Called exactly once, in stage order.
        """
        self.model = model
        self.progress = progress

    def let_go(self) -> None:
        """Take away what watches the model from outside of it, such as hooks of torch: the run is given up.

        Weights stay as they are, and so does what `prepare` changed. Called in place of ``on_train_end``.
        """

    def tracked_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters whose updates are this callback's clock; none means any parameter of the model."""
        return ()

    def findings(self) -> Iterable[Finding]:
        """What was asked of each module, for the report. The report measures the outcome itself."""
        return ()

    def metrics(self) -> Mapping[str, float]:
        """Numbers to log beside the loss, by name; asked for as often as the training loop logs.

        No collective may happen here: some trainers log on one rank only.
        """
        return {}

    def sparsity_over_steps(self) -> Sequence[tuple[int, float]]:
        """Optimizer steps at which the share of pruned units changed, and what it was from then on; for the report."""
        return ()

    def phases(self) -> Iterable[Phase]:
        """What it does from which optimizer step to which, for ``manager.plan()``; none means all the time."""
        return ()

    def has_reached_goal(self) -> bool:
        """Whether the model is compressed as far as it will be, so that it may be the best of a run."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state_dict` continues bit for bit."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Unknown or missing keys are an error."""

    def on_train_begin(self, dataloader: object = None) -> None:
        """Called once before the first step, and again after a state was loaded."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Called at the start of an epoch."""

    def on_step_begin(self, batch_id: int) -> None:
        """Called before the forward of every batch (of every micro-batch under accumulation)."""

    def on_after_compute_loss(
        self,
        input: object,  # noqa: A002  INC's argument name, used as a keyword in scripts
        student_output: object,
        student_loss: torch.Tensor,
        teacher_output: object = None,
    ) -> torch.Tensor:
        """Called between loss and backward; returns the loss to go on with."""
        return student_loss

    def on_before_optimizer_step(self) -> None:
        """Called when the gradients of a step are complete, before ``optimizer.step()``."""

    def on_after_optimizer_step(self) -> None:
        """Called after the weights were really updated; ``progress.step`` still counts the steps before it."""

    def on_step_end(self) -> None:
        """Called at the end of every batch."""

    def on_epoch_end(self) -> None:
        """Called at the end of an epoch."""

    def on_before_eval(self) -> None:
        """Called before an evaluation."""

    def on_after_eval(self) -> None:
        """Called after an evaluation."""

    def on_train_end(self) -> None:
        """Called once after the last step."""
