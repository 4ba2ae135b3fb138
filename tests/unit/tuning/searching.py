"""Searches of which a trial takes no time: scores come from the recipe, in this process or in others to be killed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alembic.command  # noqa: F401  these two here, so that processes forked from one that has this file need not
import sqlalchemy.orm  # noqa: F401
from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from inc_torch.tuning import _search, _study
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
    if seconds:
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
    *,
    seconds: float = 0.0,
    log: str | None = None,
    gate: Any = None,
    host: str | None = None,
    heartbeat: float | None = None,
    dies: tuple[int, str] | None = None,
) -> None:
    """One worker, from beginning to end.

    Args:
        where: The storage.
        strategy: By name.
        most: Greatest number of trials.
        seconds: Of each trial.
        log: File to which each trial adds a line when it begins: the process and the recipe.
        gate: A barrier at which workers wait for each other before they begin, as some take long to start.
        host: Another machine to be on.
        heartbeat: Seconds between two signs of life.
        dies: At which write, and ``"before"``, ``"within"`` or ``"after"`` it.
    """
    _search._POLL_SECONDS = 0.05
    _study._TAKING_SECONDS = 1.0
    if host is not None:
        _study.host = lambda: host
    if heartbeat is not None:
        _study.HEARTBEAT_SECONDS = heartbeat
    if dies is not None:
        _die_at(*dies)
    _forget_locks_soon()

    def measure(recipe: Recipe) -> Measured:
        if log is not None:
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {named(recipe)}\n")
        return measured(recipe, seconds=seconds)

    if gate is not None:
        gate.wait(60)
    ran(where, strategy, Limits(most), measure)


def _forget_locks_soon() -> None:
    """The lock of a journal outlives a process that is killed within a write; Optuna takes it away after 30 seconds."""
    JournalFileOpenLock.__init__.__defaults__ = (3,)


def _die_at(write: int, when: str) -> None:
    """Kill this process at one of its writes to any storage."""
    count = itertools.count(1)

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            is_last = next(count) == write
            if is_last and when == "within":
                backend, (line, *_) = arguments
                with Path(backend._file_path).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, separators=(",", ":"))[:-7])
            if is_last and when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **keywords)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    JournalFileBackend.append_logs = deadly(JournalFileBackend.append_logs)
    for name in (
        "create_new_study",
        "set_study_user_attr",
        "set_study_system_attr",
        "_create_new_trial",
        "set_trial_user_attr",
        "set_trial_state_values",
    ):
        setattr(RDBStorage, name, deadly(getattr(RDBStorage, name)))


def tell_name(queue: Any, about: dict[str, object]) -> None:
    queue.put(opened(None, **about).name)


@contextlib.contextmanager
def started(*processes: Any) -> Iterator[Any]:
    """Start processes, and leave none of them behind."""
    try:
        for process in processes:
            process.start()
        yield processes[0]
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
