"""Searches of which a trial takes no time: scores come from the recipe, in this process or in others to be killed."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alembic.command  # noqa: F401  these two here, so that processes forked from one that has this file need not
import sqlalchemy.orm  # noqa: F401

from inc_torch.tuning import _study
from inc_torch.tuning._result import Trial
from inc_torch.tuning._search import Limits, run_search
from inc_torch.tuning._space import Recipe, Space
from inc_torch.tuning._strategy import STRATEGIES, Goal, Search, Strategy
from inc_torch.tuning._study import Measured, TuningStudy
from tests.unit.tuning.simulated import NEVER, ToldErrors, linears

ACCURACY = {"accuracy": "maximize"}
TIMED = {"accuracy": "maximize", "performance": "minimize"}
SPACE = Space(linears("s:asym/kl s:asym/minmax fp32", "fc1", "fc2", "fc3", "fc4"))
MANY = Limits(1000)
ERRORS = {"fc1": 0.1, "fc2": 0.4, "fc3": 0.2, "fc4": 0.3}


def score(recipe: Recipe) -> float:
    """A number from 0 to 1 that looks like chance."""
    return int.from_bytes(hashlib.sha256(repr(recipe).encode()).digest()[:2], "big") / 2**16


def measured(recipe: Recipe, *, seconds: float = 0.0) -> Measured:
    time.sleep(seconds)
    return Measured(score(recipe), {"performance": 1.0 + score(recipe)}, 0.25)


def opened(
    where: str | os.PathLike[str] | None,
    *,
    space: Space = SPACE,
    must_exist: bool = False,
    directions: Mapping[str, str] = ACCURACY,
    **about: object,
) -> TuningStudy:
    whole = {"model": "Model", "strategy": "basic", "seed": 0} | about
    place = None if where is None else os.fspath(where)
    return TuningStudy(space, whole, place, must_exist=must_exist, directions=directions)


@dataclass
class Ran:
    """A search that has ended."""

    reason: str
    study: TuningStudy
    noted: list[list[Trial]]

    @property
    def trials(self) -> list[tuple[str, float]]:
        return listed(self.study)


def listed(study: TuningStudy) -> list[tuple[str, float]]:
    """What was tried, in order, and the scores."""
    return [(named(trial.recipe), trial.score) for trial in study.trials()]


def named(recipe: Recipe) -> str:
    more = [str(value) for value in (recipe.samples, recipe.alpha) if value is not None]
    return " ".join([*recipe.labels, *more])


def ran(
    where: str | os.PathLike[str] | TuningStudy | None = None,
    strategy: str | Strategy = "basic",
    limits: Limits = MANY,
    measure: Callable[[Recipe], Measured] = measured,
    *,
    space: Space = SPACE,
    goal: Goal = NEVER,
    seed: int = 0,
    noted: Callable[[list[Trial]], None] = lambda trials: None,
    **more: Any,
) -> Ran:
    """Search until there is an end to it."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    study = where if isinstance(where, TuningStudy) else opened(where, space=space, strategy=name, seed=seed, **more)
    search = Search(space, goal, ToldErrors(outputs=ERRORS, space=space), seed)
    calls: list[list[Trial]] = []

    def note(trials: list[Trial]) -> None:
        calls.append(list(trials))
        noted(trials)

    asked = STRATEGIES.get(strategy)() if isinstance(strategy, str) else strategy
    return Ran(run_search(asked, search, study, limits, measure, note), study, calls)


# ---------------------------------------------------------------------------- in other processes


def forking() -> Any:
    """A context of multiprocessing: processes begin in no time, as they are forked from one that has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def work(
    where: str,
    strategy: str = "basic",
    most: int = 1000,
    seconds: float = 0.0,
    log: str | None = None,
    host: str | None = None,
    heartbeat: float | None = None,
) -> None:
    """One worker, from beginning to end.

    Args:
        where: The storage.
        strategy: By name.
        most: Greatest number of trials.
        seconds: Of each trial.
        log: File to which each trial adds a line when it begins: the process and the recipe.
        host: Another machine to be on.
        heartbeat: Seconds between two signs of life.
    """
    if host is not None:
        _study.host = lambda: host
    if heartbeat is not None:
        _study.HEARTBEAT_SECONDS = heartbeat

    def measure(recipe: Recipe) -> Measured:
        if log is not None:
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {named(recipe)}\n")
        return measured(recipe, seconds=seconds)

    ran(where, strategy, Limits(most), measure)


@contextlib.contextmanager
def ended(*processes: Any):
    """Leave no process behind."""
    try:
        yield
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
