"""A search as a study of Optuna: which trials there are, who tries which, and what is known of them.

Each operation with a choice is a categorical parameter of the study, so that Optuna's samplers, plots and dashboard
work on it. What they do not know, such as seconds and objectives, stands in user attributes.

A trial is waiting, with its recipe, before anybody runs it, and has a number, which storages give to one at a time. So
of two trials of one recipe the second is refused, whichever processes they are of, and whenever these are killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, final

from inc_torch.core.errors import ConfigError, StateError
from inc_torch.core.user_warning import ignored
from inc_torch.tuning._result import Trial
from inc_torch.tuning._space import Recipe, Space
from inc_torch.tuning._storage import explained, opened, shown
from inc_torch.tuning._stored import plain_number
from inc_torch.tuning._strategy import Goal
from inc_torch.tuning._workers import host, is_alive, this_process

if TYPE_CHECKING:
    import optuna

__all__ = ["Measured", "TuningStudy"]

HEARTBEAT_SECONDS: float = 20
"""How often a worker says that it lives; after three times that in silence its trial is given to another."""

_SAMPLES, _ALPHA = "calibration samples", "smoothing alpha"
_OWN = "inc_torch"
"""Key of what a study is about."""
_ASKER, _WORKER, _BEAT = "asker", "worker", "heartbeat"
"""Of a trial: who has put it down to be run; who runs it; how often that one has said since that it lives."""
_ATTEMPTING: set[str] = set()
"""The studies of this process that try a recipe just now, by the run in `_WORKER`."""
_TAKING_SECONDS: float = 5
"""Longest time between the two steps in which a worker takes a trial: it begins to run, and is marked as the worker's.
One that is left in between was of a process that is no more."""
_FARTHEST: Final = 1e3
"""What is not finite is told to Optuna as so many times the baseline, or as so much if that is less."""


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
        about: What the search is of, in plain values: strategy, model, criteria. Two searches of which this is equal
            are one and the same.
        where: None keeps trials in memory; else a file, a folder, or the URL of a database.
        must_exist: Whether there has to be such a search already.
        directions: Of the values that Optuna is told: ``"maximize"`` or ``"minimize"`` by name, the score first.

    Attributes:
        name: Of the study, the same wherever the search is the same.
        is_kept: Whether trials outlive the process, and others may take part.

    Raises:
        ArtifactError: The file is damaged or another program's.
        StateError: ``must_exist``, and there is none; it names what differs from the one that is there. Or it cannot be
            opened.
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
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(values) for name, values in self._parameters.items()
        }
        self._told = [optuna.study.StudyDirection[direction.upper()] for direction in directions.values()]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        self.name = f"{about.get('model', 'model')} {about.get('strategy', '')} {digest}"
        self._worker = {"host": host(), "process": this_process(), "run": str(uuid.uuid4())}
        self._signs: dict[int, tuple[object, float]] = {}
        with _QUIET:
            storage = opened(where, must_exist=must_exist)
            self.is_kept = storage is not None
            with explained(where):
                if must_exist and storage is not None:
                    _require_known(storage, self.name, about, shown(str(where)))
                self._study = self._created(storage, about)
        self._storage = storage
        if isinstance(storage, optuna.storages.RDBStorage):
            weakref.finalize(self, storage.engine.dispose)
        self.release_dead()

    def _created(self, storage: optuna.storages.BaseStorage | None, about: Mapping[str, object]) -> optuna.Study:
        import optuna

        study = optuna.create_study(
            storage=storage,
            sampler=optuna.samplers.RandomSampler(seed=0),
            study_name=self.name,
            directions=self._told,
            load_if_exists=True,
        )
        if _OWN not in study.user_attrs:
            with ignored(optuna.exceptions.ExperimentalWarning):
                study.set_metric_names(list(self._directions))
            study.set_user_attr(_OWN, dict(about))
        return study

    # ------------------------------------------------------------------------------------------- what is known

    def trials(self) -> list[Trial]:
        """All that are through or running, in order, numbered from 1."""
        found: dict[Recipe, optuna.trial.FrozenTrial] = {}
        for trial, recipe in self._begun():
            found.setdefault(recipe, trial)
        return [_read(number, trial, recipe) for number, (recipe, trial) in enumerate(found.items(), start=1)]

    def remembered(self, key: str) -> Any:  # noqa: ANN401  a plain value
        """What `remember` was told under ``key`` in any process; None if nothing was."""
        return self._study.user_attrs.get(key)

    def remember(self, key: str, value: object) -> None:
        """Keep a plain value that is dear, such as the score of the float model."""
        self._study.set_user_attr(key, value)

    def proposals(self, sampler: optuna.samplers.BaseSampler) -> Iterator[Recipe]:
        """What a sampler asks for, without end, given the trials so far; none of it becomes a trial by that."""
        import optuna

        with _QUIET:
            copy = optuna.create_study(directions=self._told, sampler=sampler)
        copy.add_trials(trial for trial, _ in self._begun())
        while True:
            yield self.recipe_of(copy.ask(self._distributions).params)

    # ------------------------------------------------------------------------------------------- one more trial

    def attempt(
        self,
        recipe: Recipe,
        measure: Callable[[Recipe], Measured],
        goal: Goal,
        *,
        most: int,
        sampler: optuna.samplers.BaseSampler | None = None,
    ) -> bool:
        """Try a recipe, or one that has waited longer.

        Args:
            recipe: As `settled` returns it.
            measure: Makes the model of a recipe and measures it. An error of it ends the trial as failed and rises.
            goal: What is asked for.
            most: Greatest number of trials of all processes.
            sampler: Who has proposed it, and is told what came of it.

        Returns:
            Whether a trial is through: not if another process has the recipe, or took the last trial.
        """
        import optuna

        self._see_all_taken()
        if not self._is_waiting(recipe):
            self._enqueue(self.parameters_of(recipe))
        self._study.sampler = sampler or optuna.samplers.RandomSampler(seed=0)
        attempt = _Attempt(self, measure, goal, most)
        _ATTEMPTING.add(self._worker["run"])
        try:
            with _QUIET:
                self._study.optimize(attempt, n_trials=1, catch=(_RefusedError,))
        except BaseException as error:
            _ATTEMPTING.discard(self._worker["run"])
            with contextlib.suppress(Exception):  # of a storage that may be what failed
                self._release_own()
            if isinstance(error, UnboundLocalError) and isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None  # Optuna stumbles over one that comes between its steps
            if attempt.error is None and isinstance(error, (RuntimeError, ValueError)) and self._has_lost(attempt):
                return False
            raise
        finally:
            _ATTEMPTING.discard(self._worker["run"])
        if attempt.error is not None:
            raise attempt.error
        return attempt.is_through

    def settled(self, recipe: Recipe) -> Recipe:
        """A recipe as it is kept, in which nothing is left open.

        Raises:
            ConfigError: It is none of the space.
        """
        for operation, label in zip(self._space.operations, recipe.labels, strict=True):
            operation.labelled(label)
        default = self._space.default
        whole = replace(
            recipe,
            samples=default.samples if recipe.samples is None else recipe.samples,
            alpha=default.alpha if recipe.alpha is None else recipe.alpha,
        )
        for name, value, values in (
            (_SAMPLES, whole.samples, self._space.samples),
            (_ALPHA, whole.alpha, self._space.alphas),
        ):
            if value is not None and value not in values:
                message = f"A recipe with {name} {value}: expected one of {', '.join(map(str, values)) or 'none'}."
                raise ConfigError(message)
        return whole

    def release_dead(self) -> None:
        """Give back the trials of processes that are no more; not while one of this object runs."""
        for trial in self._running():
            if not self._is_worked_on(trial):
                self._give_back(trial)

    def _release_own(self) -> None:
        """Give back what this worker had begun or was about to."""
        for trial in self._running():
            if trial.user_attrs.get(_WORKER, trial.user_attrs.get(_ASKER)) == self._worker:
                self._give_back(trial)

    def _see_all_taken(self) -> None:
        """Wait until every trial that runs is known to be somebody's, so that what was left comes before others."""
        self.release_dead()
        while any(_WORKER not in trial.user_attrs and _ASKER in trial.user_attrs for trial in self._running()):
            time.sleep(_TAKING_SECONDS / 100)
            self.release_dead()

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        import optuna

        return self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))

    def _give_back(self, trial: optuna.trial.FrozenTrial) -> None:
        import optuna

        with contextlib.suppress(RuntimeError, ValueError):  # another process was first
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if (recipe := self._recipe_tried(trial)) is not None:
                self._enqueue(self.parameters_of(recipe))

    def _is_worked_on(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether the process that runs a trial lives: looked for on this host, heard of from others."""
        known = trial.user_attrs
        worker, beat = known.get(_WORKER, {}), known.get(_BEAT)
        if worker.get("host") == self._worker["host"]:
            if worker["process"] == self._worker["process"]:
                return worker["run"] in _ATTEMPTING
            return is_alive(worker["process"])
        patience = _TAKING_SECONDS if _ASKER in known and not worker else 3 * HEARTBEAT_SECONDS
        now, sign = time.monotonic(), (worker.get("run"), beat)
        before, since = self._signs.setdefault(trial.number, (sign, now))
        if sign != before:
            self._signs[trial.number] = sign, now
            return True
        return now - since <= patience

    def _begun(self) -> list[tuple[optuna.trial.FrozenTrial, Recipe]]:
        """The trials that are running or through, and their recipes; those of other programs left out."""
        from optuna.trial import TrialState

        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
        ours = [trial for trial in trials if trial.state is TrialState.RUNNING or "score" in trial.user_attrs]
        return [(trial, recipe) for trial in ours if (recipe := self._recipe_tried(trial)) is not None]

    def _is_waiting(self, recipe: Recipe) -> bool:
        import optuna

        waiting = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        return any(self._recipe_tried(trial) == recipe for trial in waiting)

    def _enqueue(self, parameters: dict[str, Any]) -> None:
        """Put a trial down to be run: whole, in one step."""
        import optuna

        self._study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.WAITING,
                params=parameters,
                distributions=self._distributions,
                user_attrs={_ASKER: self._worker},
            )
        )

    def _has_lost(self, attempt: _Attempt) -> bool:
        """Whether others took a trial for dead, and gave it away."""
        import optuna

        failed = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.FAIL,))
        return any(trial.number == attempt.number for trial in failed)

    # ------------------------------------------------------------------------------------------- while a trial runs

    def begin(self, trial: optuna.Trial, most: int) -> Recipe:
        """Make a trial this worker's.

        Raises:
            _RefusedError: Its recipe or the last trial is another one's, or nobody has asked for it: others were faster
                to take what waited, and Optuna drew a trial at random.
        """
        drawn = self._study.get_trials(deepcopy=False)[trial.number]
        if not (drawn.user_attrs or drawn.params or drawn.system_attrs.get("fixed_params")):
            raise _RefusedError
        trial.set_user_attr(_WORKER, self._worker)
        own = self.recipe_of(
            {name: trial.suggest_categorical(name, values) for name, values in self._parameters.items()}
        )
        earlier = 0
        for other, recipe in self._begun():
            earlier += other.number < trial.number
            if recipe == own and (other.number < trial.number or other.state.is_finished()):
                raise _RefusedError
        if earlier >= most:
            raise _RefusedError
        return own

    @contextlib.contextmanager
    def beating(self, trial: optuna.Trial) -> Iterator[None]:
        """Let other hosts know, now and then, that this process lives."""
        storage, ended = self._storage, threading.Event()
        if storage is None:
            yield
            return

        def beat() -> None:
            beats = 0
            while not ended.wait(HEARTBEAT_SECONDS):
                beats += 1
                with contextlib.suppress(Exception):  # the next one may get through
                    trial.set_user_attr(_BEAT, beats)
            storage.remove_session()

        thread = threading.Thread(target=beat, name="inc_torch heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def note(self, trial: optuna.Trial, measured: Measured, goal: Goal) -> list[float]:
        """Keep what a trial found, and return what Optuna is told: finite, as it fails a trial without a number."""
        farthest = _FARTHEST * max(1.0, abs(goal.baseline) if math.isfinite(goal.baseline) else 1.0)
        values = [
            _finite(value, -farthest if direction == "maximize" else farthest)
            for value, direction in zip(
                [measured.score, *(measured.objectives[name] for name in list(self._directions)[1:])],
                self._directions.values(),
                strict=True,
            )
        ]
        shortfall = goal.rank(goal.target) - goal.rank(values[0])
        told = {
            "score": plain_number(float(measured.score)),
            "is_met": goal.is_met(measured.score) and not measured.is_cut,
            "is_cut": measured.is_cut,
            "objectives": {name: plain_number(float(value)) for name, value in measured.objectives.items()},
            "seconds": measured.seconds,
            "shortfall": min(max(shortfall, -farthest), farthest),
        }
        for key, value in told.items():
            trial.set_user_attr(key, value)
        return values

    # ------------------------------------------------------------------------------------------- words

    def _recipe_tried(self, trial: optuna.trial.FrozenTrial) -> Recipe | None:
        """The recipe of a trial; None if it leaves something open."""
        parameters = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        return self.recipe_of(parameters) if parameters.keys() >= self._parameters.keys() else None

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


@final
@dataclass(slots=True)
class _Attempt:
    """The function that Optuna optimizes, and what became of its only call."""

    study: TuningStudy
    measure: Callable[[Recipe], Measured]
    goal: Goal
    most: int
    number: int | None = None
    is_through: bool = False
    error: BaseException | None = None

    def __call__(self, trial: optuna.Trial) -> list[float]:
        self.number = trial.number
        recipe = self.study.begin(trial, self.most)
        with self.study.beating(trial):
            try:
                measured = self.measure(recipe)
            except BaseException as error:
                self.error = error
                raise
        values = self.study.note(trial, measured, self.goal)
        self.is_through = True
        return values


class _RefusedError(Exception):
    """A trial is not to be run: no user sees this."""


def _read(number: int, trial: optuna.trial.FrozenTrial, recipe: Recipe) -> Trial:
    told = trial.user_attrs
    if not trial.state.is_finished():
        return Trial(number, recipe, float("nan"), False, {}, 0.0, "running")
    state: Literal["cut", "complete"] = "cut" if told["is_cut"] else "complete"
    objectives = {name: float(value) for name, value in told["objectives"].items()}
    return Trial(number, recipe, float(told["score"]), told["is_met"], objectives, told["seconds"], state)


def _finite(value: float, worst: float) -> float:
    return float(value) if math.isfinite(value) else worst


def _parameters_of(space: Space) -> dict[str, tuple[Any, ...]]:
    """By name, the values of everything of which there is a choice."""
    labels = {operation.name: tuple(choice.label for choice in operation.choices) for operation in space.operations}
    others = {_SAMPLES: space.samples, _ALPHA: space.alphas}
    return {name: values for name, values in {**labels, **others}.items() if len(values) > 1}


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
        f"{key} ({_short(saved.get(key))} there, {_short(plain.get(key))} here)"
        for key in sorted(saved.keys() | plain.keys())
        if saved.get(key) != plain.get(key)
    ]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


_LONG = 60


@final
class _Quiet:
    """Keep Optuna's lines on single trials to itself: the search has its own. Several threads may search at a time."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        import optuna

        with self._lock:
            if not self._inside:
                self._before = optuna.logging.get_verbosity()
                optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        import optuna

        with self._lock:
            self._inside -= 1
            if not self._inside:
                optuna.logging.set_verbosity(self._before)


_QUIET = _Quiet()
