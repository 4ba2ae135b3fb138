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
from itertools import islice, product
from typing import TYPE_CHECKING, final

from inc_torch.tuning._result import Trial
from inc_torch.tuning._sampling import seed_of
from inc_torch.tuning._space import Recipe, Space
from inc_torch.tuning._strategy import Outcome, PlannedStrategy, SampledStrategy, Search, Stage, Strategy
from inc_torch.tuning._study import Measured, TuningStudy

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

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
            self._sample(strategy)
            return
        stages = strategy.stages(self.search)
        try:
            stage = next(stages)
            while True:
                outcomes = self._through(stage)
                self._is_full()  # before the strategy measures what to propose next
                stage = stages.send(outcomes)
        except StopIteration:
            return
        finally:
            stages.close()

    def finished(self) -> list[Trial]:
        """The trials that are through, of all processes."""
        return [trial for trial in self.study.trials() if trial.state != "running"]

    # ------------------------------------------------------------------------------------------- planned

    def _through(self, stage: Stage) -> list[Outcome]:
        """Have every recipe of a stage tried, here or elsewhere, and return what came of them."""
        while True:
            outcomes: dict[Recipe, Outcome] = {}
            known, is_waiting = self._known(), False
            for recipe in stage.recipes:
                if recipe in outcomes:
                    continue
                settled = self.study.settled(recipe)
                if settled not in known:
                    known = self._tried(settled)
                trial = known.get(settled)
                if trial is None or trial.state == "running":
                    is_waiting = True
                    if trial is None:  # all trials are taken, or it was given back just now
                        break
                    continue
                outcomes[recipe] = Outcome(recipe, trial.score, trial.is_met)
                if trial.is_met and stage.ends_at_goal and self.limits.timeout == 0:
                    message = f"trial {trial.number} meets the goal"
                    raise _EndError(message)
            if not is_waiting:
                return list(outcomes.values())
            self._wait()

    def _tried(self, recipe: Recipe) -> dict[Recipe, Trial]:
        """Try a recipe, after those that have waited longer; what is known of all recipes then."""
        while not self._is_full() and self._attempt(recipe):
            if recipe in (known := self._known()):
                return known
        return self._known()

    def _known(self) -> dict[Recipe, Trial]:
        return {trial.recipe: trial for trial in self.study.trials()}

    # ------------------------------------------------------------------------------------------- sampled

    def _sample(self, strategy: SampledStrategy) -> None:
        while True:
            known = self._known()
            met = [trial.number for trial in known.values() if trial.is_met]
            if met and self.limits.timeout == 0:
                message = f"trial {met[0]} meets the goal"
                raise _EndError(message)
            if self._is_full():
                self._wait()
                continue
            sampler = strategy.sampler(self.search, len(known) + 1)
            recipe = next((recipe for recipe in self._proposed(sampler, len(known) + 1) if recipe not in known), None)
            if recipe is not None:
                self._attempt(recipe, sampler)
            elif any(trial.state == "running" for trial in known.values()):
                self._wait()
            else:
                message = "everything was tried"
                raise _EndError(message)

    def _proposed(self, sampler: BaseSampler, number: int) -> Iterator[Recipe]:
        """What Optuna proposes; if that is known, recipes by chance; at last all in their order."""
        from optuna.samplers import RandomSampler

        yield next(self.study.proposals(sampler))
        yield from islice(self.study.proposals(RandomSampler(seed=seed_of(self.search, number))), _GUESSES)
        yield from _all_recipes(self.search.space)

    # ------------------------------------------------------------------------------------------- both

    def _attempt(self, recipe: Recipe, sampler: BaseSampler | None = None) -> bool:
        most = self.limits.max_trials
        is_through = self.study.attempt(recipe, self._measured, self.search.goal, most=most, sampler=sampler)
        if is_through:
            self.noted(self.finished())
        return is_through

    def _measured(self, recipe: Recipe) -> Measured:
        try:
            return self.measure(recipe)
        except Exception as error:
            trial = self._known().get(recipe)
            number = "a trial" if trial is None else f"trial {trial.number}"
            error.add_note(f"In {number} of the tuning search {self.study.name!r}; {self._kept()}.")
            raise

    def _kept(self) -> str:
        """What there is of earlier trials."""
        count = len(self.finished())
        if not count:
            return "no trial was through before it"
        before = "the trial before it is" if count == 1 else f"the {count} trials before it are"
        return f"{before} {'kept' if self.study.is_kept else 'lost: set options.workspace to keep them'}"

    def _is_full(self) -> bool:
        """Whether every trial is taken, some by other processes, which may still fail.

        Raises:
            _EndError: Nothing may be tried any more.
        """
        trials = self.study.trials()
        is_full = len(trials) >= self.limits.max_trials
        if is_full and all(trial.state != "running" for trial in trials):
            message = f"max_trials={self.limits.max_trials} is reached"
            raise _EndError(message)
        self._end_if_late()
        return is_full

    def _end_if_late(self) -> None:
        if self.limits.timeout and time.monotonic() - self._began >= self.limits.timeout:
            message = f"timeout={self.limits.timeout:g} seconds is over"
            raise _EndError(message)

    def _wait(self) -> None:
        """Let others come to the end of their trials, or find out that they never will."""
        self._end_if_late()
        time.sleep(_POLL_SECONDS)
        self.study.release_dead()


def _all_recipes(space: Space) -> Iterator[Recipe]:
    """Every recipe of a space, without end in practice."""
    labels = [[choice.label for choice in operation.choices] for operation in space.operations]
    for samples, alpha in product(space.samples or (None,), space.alphas or (None,)):
        for chosen in product(*labels):
            yield Recipe(chosen, samples, alpha)
