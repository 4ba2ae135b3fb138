"""A search as a study of Optuna: where trials are kept, who tries which, and what is known of them.

Each operation with a choice is a categorical parameter of the study, so that Optuna's samplers, plots and dashboard
work on it. What they do not know, such as seconds and objectives, stands in user attributes.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, final

from inc_torch.core.errors import StateError
from inc_torch.core.optional import require
from inc_torch.tuning._result import Trial
from inc_torch.tuning._space import Recipe, Space
from inc_torch.tuning._strategy import Goal

if TYPE_CHECKING:
    import optuna

__all__ = ["DATABASE", "Measured", "TuningStudy", "is_database"]

DATABASE: Final = "tuning.db"
"""The file of a workspace that is a folder."""
HEARTBEAT_SECONDS: Final = 20
"""How often a worker of a shared search says that it lives; after three times that its trial is given to another."""

_SAMPLES, _ALPHA = "calibration samples", "smoothing alpha"
_OWN = "inc_torch"
"""Key of what a study is about."""


@final
@dataclass(frozen=True, slots=True)
class Measured:
    """What one trial found.

    Attributes:
        score: Accuracy of the model.
        objectives: By name.
        seconds: Of the whole trial.
        is_cut: The evaluation was ended early, as the goal was out of reach.
    """

    score: float
    objectives: Mapping[str, float]
    seconds: float
    is_cut: bool = False


@final
class TuningStudy:
    """The trials of one search, shared by all processes that have opened it.

    Args:
        space: What may be chosen.
        about: What the search is of, in plain values: strategy, model, criteria. Two searches of which this is equal are
            one and the same.
        where: None keeps trials in memory; else a file, a folder, or the URL of a database.
        must_exist: Whether there has to be such a search already.
        directions: Of the values that Optuna is told: ``"maximize"`` or ``"minimize"`` by name, the score first.

    Raises:
        StateError: ``must_exist``, and there is none; it names what differs from the one that is there.
    """

    def __init__(
        self,
        space: Space,
        about: Mapping[str, object],
        where: str | None,
        *,
        must_exist: bool,
        directions: Mapping[str, str],
    ) -> None:
        import optuna

        self._space, self._directions = space, directions
        self._parameters = _parameters_of(space)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        self.name = f"{about.get('model', 'model')} {about.get('strategy', '')} {digest}"
        storage = _storage_of(where, must_exist=must_exist)
        if must_exist and storage is not None:
            _require_known(storage, self.name, about, str(where))
        with _quiet():
            self._study = optuna.create_study(
                storage=storage, study_name=self.name, directions=list(directions.values()), load_if_exists=True
            )
        if _OWN not in self._study.user_attrs:
            self._study.set_user_attr(_OWN, dict(about))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names(list(directions))
        self._distributions = {
            name: optuna.distributions.CategoricalDistribution(values) for name, values in self._parameters.items()
        }
        self.release_dead()

    # ------------------------------------------------------------------------------------------- what is known

    def trials(self) -> list[Trial]:
        """All that ended or is running, in order, numbered from 1."""
        found = [
            (trial, recipe)
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.name in ("RUNNING", "COMPLETE") and (recipe := self._recipe_tried(trial)) is not None
        ]
        return [_read(number, trial, recipe) for number, (trial, recipe) in enumerate(found, start=1)]

    def remembered(self, key: str) -> Any:  # noqa: ANN401  a plain value
        """What `remember` was told under ``key`` in any process; None if nothing was."""
        return self._study.user_attrs.get(key)

    def remember(self, key: str, value: object) -> None:
        """Keep a plain value that is dear, such as the score of the float model."""
        self._study.set_user_attr(key, value)

    # ------------------------------------------------------------------------------------------- one more trial

    def attempt(
        self,
        recipe: Recipe | None,
        sampler: optuna.samplers.BaseSampler | None,
        measure: Callable[[Recipe], Measured],
        goal: Goal,
    ) -> bool:
        """Try a recipe, that of the sampler if it is None; whether one was tried, which no process has tried before.

        An error of ``measure`` ends the trial as failed and rises.
        """
        import optuna

        tried = False

        def objective(trial: optuna.Trial) -> list[float]:
            nonlocal tried
            params = {name: trial.suggest_categorical(name, values) for name, values in self._parameters.items()}
            asked = self.recipe_of(params)
            self._refuse_known(trial, asked)
            for key, value in _worker().items():
                trial.set_user_attr(key, value)
            tried = True
            measured = measure(asked)
            shortfall = goal.rank(goal.target) - goal.rank(measured.score)
            told = {
                "score": measured.score,
                "is_met": goal.is_met(measured.score) and not measured.is_cut,
                "is_cut": measured.is_cut,
                "objectives": dict(measured.objectives),
                "seconds": measured.seconds,
                "shortfall": shortfall if shortfall == shortfall else float("inf"),  # noqa: PLR0124  NaN
            }
            for key, value in told.items():
                trial.set_user_attr(key, value)
            return self._values(measured, goal)

        if recipe is not None and not self._is_waiting(recipe):
            self._study.enqueue_trial(self.parameters_of(recipe))
        if sampler is not None:
            self._study.sampler = sampler
        with _quiet():
            self._study.optimize(objective, n_trials=1, catch=(_KnownError,))
        return tried

    def _values(self, measured: Measured, goal: Goal) -> list[float]:
        """What Optuna is told: finite, as it takes a trial without a number for a failed one."""
        worst = goal.baseline - 1e3 * max(1.0, abs(goal.baseline)) * (1 if goal.higher_is_better else -1)
        score = measured.score if abs(measured.score) < float("inf") else worst
        others = [measured.objectives[name] for name in list(self._directions)[1:]]
        return [score, *others]

    def _refuse_known(self, own: optuna.Trial, recipe: Recipe) -> None:
        """Leave a recipe to the trial that had it first."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.number < own.number and trial.state.name != "FAIL" and self._recipe_tried(trial) == recipe:
                raise _KnownError

    def _is_waiting(self, recipe: Recipe) -> bool:
        trials = self._study.get_trials(deepcopy=False)
        return any(trial.state.name == "WAITING" and self._recipe_tried(trial) == recipe for trial in trials)

    def _recipe_tried(self, trial: optuna.trial.FrozenTrial) -> Recipe | None:
        """The recipe of a trial; None as long as its sampler is still choosing."""
        parameters = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        return self.recipe_of(parameters) if parameters.keys() >= self._parameters.keys() else None

    def release_dead(self) -> None:
        """Give back the trials of processes of this machine that are no more."""
        import optuna

        for trial in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            attributes = trial.user_attrs
            if attributes.get("host") == _host() and not _lives(attributes["process"]):
                with contextlib.suppress(RuntimeError):  # another process was first
                    self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def release_stale(self) -> None:
        """Give back the trials of workers, anywhere, that have not been heard of for a while."""
        import optuna

        with _quiet():
            optuna.storages.fail_stale_trials(self._study)
        self.release_dead()

    # ------------------------------------------------------------------------------------------- words

    def parameters_of(self, recipe: Recipe) -> dict[str, Any]:
        """A recipe as parameters of Optuna: of what there is a choice."""
        chosen: dict[str, Any] = {
            operation.name: label
            for operation, label in zip(self._space.operations, recipe.labels, strict=True)
            if operation.name in self._parameters
        }
        if _SAMPLES in self._parameters:
            chosen[_SAMPLES] = recipe.samples
        if _ALPHA in self._parameters:
            chosen[_ALPHA] = recipe.alpha
        return chosen

    def recipe_of(self, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe that `parameters_of` described; what is not named is as in the default."""
        default = self._space.default
        labels = tuple(
            parameters.get(operation.name, label)
            for operation, label in zip(self._space.operations, default.labels, strict=True)
        )
        return Recipe(labels, parameters.get(_SAMPLES, default.samples), parameters.get(_ALPHA, default.alpha))


def _read(number: int, trial: optuna.trial.FrozenTrial, recipe: Recipe) -> Trial:
    told = trial.user_attrs
    if not trial.state.is_finished():
        return Trial(number, recipe, float("nan"), False, {}, 0.0, "running")
    state: Literal["cut", "complete"] = "cut" if told["is_cut"] else "complete"
    return Trial(number, recipe, told["score"], told["is_met"], told["objectives"], told["seconds"], state)


class _KnownError(Exception):
    """A recipe was tried before: nothing is to be done, and no user sees this."""


def _parameters_of(space: Space) -> dict[str, tuple[Any, ...]]:
    """By name, the values of everything of which there is a choice."""
    labels = {operation.name: tuple(choice.label for choice in operation.choices) for operation in space.operations}
    others = {_SAMPLES: space.samples, _ALPHA: space.alphas}
    return {name: values for name, values in {**labels, **others}.items() if len(values) > 1}


def is_database(where: str) -> bool:
    """Whether ``where`` is the URL of a database, not a path."""
    return "://" in where


def _storage_of(where: str | None, *, must_exist: bool) -> optuna.storages.BaseStorage | None:
    if where is None:
        return None
    if is_database(where) and not where.startswith("sqlite:"):
        return _server(where)
    path = Path(where.partition(":///")[2] if is_database(where) else where).expanduser()
    if not is_database(where) and (path.is_dir() or not path.suffix):
        path = path / DATABASE
    if must_exist and not path.is_file():
        message = f"There is no tuning search to resume: {str(path)!r} does not exist. Check options.resume_from."
        raise StateError(message)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _journal(path) if path.suffix in _JOURNALS else _sqlite(path)


_JOURNALS = (".journal", ".log", ".jsonl")


def _journal(path: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def _sqlite(path: Path) -> optuna.storages.BaseStorage:
    """A file that survives a killed process; written ahead, as a trial has a row for each operation."""
    import sqlalchemy
    from optuna.storages import RDBStorage

    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})

    def write_ahead(connection: Any, _: object) -> None:  # noqa: ANN401  what the driver connects with
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(storage.engine, "connect", write_ahead)
    storage.engine.dispose()
    return storage


def _server(url: str) -> optuna.storages.BaseStorage:
    """A database server, in which workers say that they live."""
    import optuna
    from optuna.storages import RDBStorage

    if url.startswith("postgresql:"):
        require("psycopg", "db", "A tuning search in PostgreSQL")
        url = url.replace("postgresql:", "postgresql+psycopg:", 1)
    names = inspect.signature(RDBStorage).parameters
    callback = next(name for name in ("heartbeat_stale_trial_callback", "failed_trial_callback") if name in names)
    with warnings.catch_warnings():  # heartbeats are called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(
            url,
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=3 * HEARTBEAT_SECONDS,
            **{callback: _retry},
        )


def _retry(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Let somebody else try what a worker did not come to the end of."""
    if trial.params:
        study.enqueue_trial(trial.params)


def _require_known(storage: optuna.storages.BaseStorage, name: str, about: Mapping[str, object], where: str) -> None:
    """Refuse to resume a search that is not there."""
    known = {study.study_name: study for study in storage.get_all_studies()}
    if name in known:
        return
    others = [study.user_attrs[_OWN] for study in known.values() if _OWN in study.user_attrs]
    if not others:
        message = f"There is no tuning search to resume in {where!r}: expected one that an earlier run has left there."
        raise StateError(message)
    nearest = min(others, key=lambda other: len(_differences(other, about)))
    message = (
        f"None of the {len(others)} tuning searches in {where!r} is this one. The nearest differs in "
        f"{', '.join(_differences(nearest, about)) or 'nothing'}. Leave options.resume_from out to start anew."
    )
    raise StateError(message)


def _differences(saved: Mapping[str, object], present: Mapping[str, object]) -> list[str]:
    plain = json.loads(json.dumps(present))
    return [
        f"{key} ({_shown(saved.get(key))} there, {_shown(plain.get(key))} here)"
        for key in sorted(saved.keys() | plain.keys())
        if saved.get(key) != plain.get(key)
    ]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


_LONG = 60


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's lines on single trials to itself: the search has its own."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _worker() -> dict[str, str]:
    """Who this process is: its number alone may come again."""
    return {"host": _host(), "process": _process(os.getpid()) or str(os.getpid())}


def _host() -> str:
    """This machine; containers on it that number their processes on their own are others."""
    spaces = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(spaces) if spaces.is_symlink() else ''}".strip()


def _process(number: int) -> str | None:
    """A process by number and, where it is known, the time at which it started; None if there is none."""
    stat = Path(f"/proc/{number}/stat")
    if stat.parent.parent.is_dir():
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            return f"{number} since {fields[_START_TIME]}"
        return None
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return str(number)


_START_TIME = 19
"""Of a process, in its line of /proc, counted after the name in parentheses; see proc(5)."""


def _lives(process: str) -> bool:
    return _process(int(process.partition(" ")[0])) == process
