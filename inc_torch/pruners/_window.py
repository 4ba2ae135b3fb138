"""When masks change, and how much is asked for then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.pruners._base import PrunerSpec

__all__ = ["PruningWindow"]

_PARTS = 4
"""In which progressive pruning takes units away."""


@final
@dataclass(frozen=True, slots=True)
class PruningWindow:
    """The update steps of one pruner: ``start, start + frequency, ...`` up to ``end``.

    With P = floor((end - start) / frequency) >= 1, update i asks for the schedule's value at i / P. The first asks
    for the initial sparsity, so it does nothing on a dense model; the last asks for the goal exactly. P = 0 is
    one shot, straight to the goal.

    Epochs are few, so the first already prunes: with P = floor((end - start + 1) / frequency), update i of 1 ... P is
    at epoch ``start + i * frequency - 1``.

    Reference: INC 2.6.1 iterative and one-shot schedulers; for epochs that of its 1.X pruners, which reaches
    the goal after the last of them, or not at all, with a frequency that does not divide them.

    Example:
        >>> from inc_torch.config import WeightPruningConfig
        >>> config = WeightPruningConfig(target_sparsity=0.5, start_step=1, end_step=10, pruning_frequency=4,
        ...                              sparsity_decay_type="linear")
        >>> window = PruningWindow(config.to_specs()[0])
        >>> [(step, window.ratio_at(step)) for step in range(12) if window.ratio_at(step) is not None]
        [(1, 0.0), (5, 0.25), (9, 0.5)]
    """

    spec: PrunerSpec

    @property
    def updates(self) -> int:
        """How many updates can change something: P, or 1 for one shot."""
        return max(1, self._span // self._frequency)

    @property
    def _span(self) -> int:
        """Steps in which sparsity can grow: in the first of them it does not, unless they are epochs."""
        return self.spec.end - self.spec.start + self.spec.counts_epochs

    @property
    def _frequency(self) -> int:
        """Steps between two updates; of few epochs the last is one."""
        return min(self.spec.frequency, self._span) if self.spec.counts_epochs else self.spec.frequency

    @property
    def goal(self) -> float:
        """The share to be reached: the target, or what the limits of the layers leave of it."""
        return min(self.spec.target, self.spec.limits.greatest)

    @property
    def last_update(self) -> int:
        """The step at which masks change for the last time."""
        return self.spec.end - self._span % self._frequency

    def part_at(self, step: int, since: int) -> float:
        """Return the share in (0, 1] of what an update has chosen that is to be pruned at ``step``.

        A first part goes at once, the last before the next update: four, or one a step if there are fewer steps. Behind
        ``end`` everything is pruned.

        Args:
            step: Optimizer steps done so far.
            since: The step of the update.

        Reference: INC 2.6.1 goes on with the first part alone if there are fewer than four steps, and behind the end
        may return to a part.
        """
        parts = min(_PARTS, self.spec.frequency)
        done = (step - since) // (self.spec.frequency // parts) + 1
        return 1.0 if step > self.spec.end else min(parts, done) / parts

    def ratio_at(self, step: int, initial: float = 0.0) -> float | None:
        """Return the share asked for at ``step``, or None if masks do not change then.

        Args:
            step: Optimizer steps done so far.
            initial: Share of zeros that were there at the start.
        """
        spec = self.spec
        index, remainder = divmod(step - spec.start + spec.counts_epochs, self._frequency)
        if remainder or not spec.start <= step <= spec.end:
            return None
        if self._span < self._frequency:
            return spec.target if spec.start == spec.end else self.goal
        asked = spec.schedule.sparsity(index / self.updates, self.goal, min(max(initial, spec.initial), self.goal))
        return min(asked, spec.target)
