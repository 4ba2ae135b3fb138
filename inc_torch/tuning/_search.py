"""The loop of a search: asks the strategy, lets recipes be tried, and knows when to end.

::

    strategy ──Stage──► each recipe not known yet ──► study.attempt ──measure──► Measured
       ▲                                                                            │
       └────────────────────────── outcomes of the stage ◄──────── trials ◄─────────┘
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import final

from inc_torch.tuning._result import Trial
from inc_torch.tuning._space import Recipe, Space
from inc_torch.tuning._strategy import Outcome, PlannedStrategy, Search, Stage, Strategy
from inc_torch.tuning._study import Measured, TuningStudy

__all__ = ["Limits", "run_search"]

_POLL_SECONDS = 0.5
_GUESSES = 20
"""Repetitions that a sampler may propose before recipes are taken in their order."""


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """What a search may spend.

    Attributes:
        max_trials: Greatest number of trials, those of other processes and of an earlier run included.
        timeout: Seconds of this process; 0 ends the search with the first model that meets the goal.
    """

    max_trials: int
    timeout: float = 0.0


def run_search(
    strategy: Strategy,
    search: Search,
    study: TuningStudy,
    limits: Limits,
    measure: Callable[[Recipe], Measured],
    noted: Callable[[Sequence[Trial]], None],
) -> str:
    """Try what the strategy asks for until an end is reached; the study holds what was found.

    Args:
        strategy: Who asks.
        search: What it knows.
        study: Where trials are kept; those in it are not tried again.
        limits: When to end.
        measure: Makes the model of a recipe and measures it.
        noted: Called with all trials so far after each one of this process.

    Returns:
        Why the search ended, as a part of a sentence.

    Raises:
        KeyboardInterrupt: Somebody pressed Ctrl-C before any trial was through.
        Exception: What ``measure`` raised, with a note on the trial.
    """
    run = _Run(strategy, search, study, limits, measure, noted)
    try:
        run.run()
    except _EndError as end:
        return str(end)
    except KeyboardInterrupt:
        if not run.finished():
            raise
        return "it was interrupted"
    return "the strategy has no more to propose"


class _EndError(Exception):
    """The search is over; its text says why."""


@final
@dataclass(slots=True)
class _Run:
    strategy: Strategy
    search: Search
    study: TuningStudy
    limits: Limits
    measure: Callable[[Recipe], Measured]
    noted: Callable[[Sequence[Trial]], None]
    _began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        strategy = self.strategy
        if not isinstance(strategy, PlannedStrategy):
            self._sample()
            return
        stages = strategy.stages(self.search)
        try:
            stage = next(stages)
            while True:
                stage = stages.send(self._through(stage))
        except StopIteration:
            return
        finally:
            stages.close()

    def finished(self) -> list[Trial]:
        """The trials that are through, of all processes."""
        return [trial for trial in self.study.trials() if trial.state != "running"]

    def _through(self, stage: Stage) -> list[Outcome]:
        """Have every recipe of a stage tried, here or elsewhere, and return what came of them."""
        while True:
            outcomes: dict[Recipe, Outcome] = {}
            is_waiting = False
            for recipe in stage.recipes:
                if recipe in outcomes:
                    continue
                known = self._known(recipe)
                if known is None:
                    self._end_if_spent()
                    self._attempt(recipe)
                    known = self._known(recipe)
                if known is None or known.state == "running":
                    is_waiting = True
                    continue
                outcomes[recipe] = Outcome(recipe, known.score, known.is_met)
                if known.is_met and stage.ends_at_goal and self.limits.timeout == 0:
                    message = f"trial {known.number} meets the goal"
                    raise _EndError(message)
            if not is_waiting:
                return list(outcomes.values())
            self._wait()

    def _known(self, recipe: Recipe) -> Trial | None:
        return next((trial for trial in self.study.trials() if trial.recipe == recipe), None)

    def _sample(self) -> None:
        """Let Optuna propose; what it proposes again is replaced by a random recipe, at last by the next in order."""
        from optuna.samplers import RandomSampler

        assert not isinstance(self.strategy, PlannedStrategy)  # noqa: S101  for the type checker
        while True:
            trials = self.study.trials()
            if self.limits.timeout == 0 and (met := [trial.number for trial in trials if trial.is_met]):
                message = f"trial {met[0]} meets the goal"
                raise _EndError(message)
            self._end_if_spent()
            number = len(trials) + 1
            if self._attempt(None, self.strategy.sampler(self.search, number)):
                continue
            guesses = (RandomSampler(seed=hash((self.search.seed, number, guess)) % 2**32) for guess in range(_GUESSES))
            if any(self._attempt(None, guess) for guess in guesses):
                continue
            known = {trial.recipe for trial in self.study.trials()}
            left = next((recipe for recipe in _all_recipes(self.search.space) if recipe not in known), None)
            if left is None:
                message = "everything was tried"
                raise _EndError(message)
            self._attempt(left)

    def _attempt(self, recipe: Recipe | None, sampler: object = None) -> bool:
        tried = self.study.attempt(recipe, sampler, self._measured, self.search.goal)
        if tried:
            self.noted(self.finished())
        return tried

    def _measured(self, recipe: Recipe) -> Measured:
        try:
            return self.measure(recipe)
        except Exception as error:
            trial = self._known(recipe)
            number = "a trial" if trial is None else f"trial {trial.number}"
            error.add_note(f"In {number} of the tuning search {self.study.name!r}; {_kept(self.finished())}.")
            raise

    def _end_if_spent(self) -> None:
        if len(self.study.trials()) >= self.limits.max_trials:
            message = f"max_trials={self.limits.max_trials} is reached"
            raise _EndError(message)
        if self.limits.timeout and self._spent() >= self.limits.timeout:
            message = f"timeout={self.limits.timeout:g} seconds is over"
            raise _EndError(message)

    def _spent(self) -> float:
        return time.monotonic() - self._began

    def _wait(self) -> None:
        """Let others come to the end of their trials, or find out that they never will."""
        if self.limits.timeout and self._spent() >= self.limits.timeout:
            self._end_if_spent()
        time.sleep(_POLL_SECONDS)
        self.study.release_stale()


def _kept(trials: Sequence[Trial]) -> str:
    if not trials:
        return "no trial was through before it"
    return f"the {len(trials)} trials before it are kept where options.workspace says"


def _all_recipes(space: Space) -> Iterator[Recipe]:
    """Every recipe of a space, without end in practice."""
    labels = [[choice.label for choice in operation.choices] for operation in space.operations]
    for samples, alpha in product(space.samples or (None,), space.alphas or (None,)):
        for chosen in product(*labels):
            yield Recipe(chosen, samples, alpha)
