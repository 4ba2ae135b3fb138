"""A search from end to end: the baseline, the goal, the trials, the result, and what becomes of a missed goal.

::

    evaluator ──baseline──► goal ──► run_search ──► TuningResult ──► best recipe ──► Candidates.finished
                                      │   ▲
                         recipe ──► candidate ──► score, objectives
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self, final

from torch import nn

from inc_torch.config import AccuracyCriterion, TuningCriterion, options
from inc_torch.core.batches import Inputs
from inc_torch.core.errors import ConfigError, GoalMissedError, GoalMissedWarning, InexactWarning, did_you_mean
from inc_torch.core.evaluation import GoalOutOfReach
from inc_torch.core.sharding import held
from inc_torch.core.user_warning import warn_user
from inc_torch.export import attach_tuning
from inc_torch.tuner._evaluator import Evaluator
from inc_torch.tuner._probes import ModelProbes
from inc_torch.tuning import (
    ACCURACY,
    STRATEGIES,
    Aim,
    Goal,
    Limits,
    Measured,
    Mode,
    PlannedStrategy,
    Recipe,
    Search,
    Space,
    Strategy,
    Trial,
    TuningResult,
    TuningStudy,
    choose,
    measured,
    run_search,
    trial_line,
)

__all__ = ["Candidates", "Tuning"]

logger = logging.getLogger("inc_torch.tuning")

_BY_LEVEL: Mapping[object, str] = {"auto": "auto", 0: "conservative"}
_PROBED_BATCHES = 4


class Candidates(Protocol):
    """Makes models of recipes."""

    @property
    def space(self) -> Space:
        """What may be chosen."""
        ...

    @property
    def reference(self) -> nn.Module:
        """The float model."""
        ...

    @property
    def kind(self) -> str:
        """A word for the models that are made, with its article."""
        ...

    @property
    def remedy(self) -> str:
        """What may make them better, as a part of a sentence."""
        ...

    def candidate(self, recipe: Recipe) -> nn.Module:
        """A model to be evaluated and thrown away."""
        ...

    @property
    def watched(self) -> Callable[[Recipe], nn.Module] | None:
        """Makes the same models, in which hooks see all modules; None where that takes a training."""
        ...

    def keep(self, recipe: Recipe) -> None:
        """Called when a recipe is the best so far: the others need not be kept."""
        ...

    def finished(self, recipe: Recipe) -> nn.Module:
        """The model to be returned; nothing is made any more afterwards."""
        ...

    def labelled_batches(self, most: int) -> list[tuple[Inputs, object]]:
        """The first batches of calibration, with their labels."""
        ...


class TunedConfig(Protocol):
    """What a configuration says of a search."""

    @property
    def accuracy_criterion(self) -> AccuracyCriterion: ...
    @property
    def tuning_criterion(self) -> TuningCriterion: ...
    @property
    def quant_level(self) -> object: ...
    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def replace(self, **changes: object) -> Self:
        """A changed copy."""
        ...


@final
class Tuning:
    """One search, as a configuration asks for it; whatever is wrong with that is found before any work is done.

    Args:
        config: With its criteria.
        evaluator: How accuracy is measured.

    Raises:
        ConfigError: An option of the strategy is wrong, or evaluations cannot end early.
    """

    def __init__(self, config: TunedConfig, evaluator: Evaluator) -> None:
        self._config, self._evaluator = config, evaluator
        self._criterion, self._limits = config.accuracy_criterion, config.tuning_criterion
        if evaluator.higher_is_better is False:
            self._criterion = self._criterion.replace(higher_is_better=False)
        self._aim = Aim.of(self._limits.objective)
        self._name = self._strategy_name()
        keywords = dict(self._limits.strategy_kwargs or {})
        self._loss: Callable[[Any, Any], Any] | None = keywords.get("hawq_v2_loss")  # type: ignore[assignment]
        self._strategy = _strategy_of(self._name, keywords)
        self._began = time.monotonic()
        self._batch: list[Inputs] | None = None
        if options.tensorboard:
            message = "options.tensorboard has no effect: model.tuning has the tables, and plot() draws a picture."
            warn_user(message, InexactWarning)
        if self._limits.early_stop:
            evaluator.require_bound()

    def _strategy_name(self) -> str:
        """The user's own strategy; where there is none, that of the level."""
        default = TuningCriterion().strategy
        chosen = self._limits.strategy
        return chosen if chosen != default else _BY_LEVEL.get(self._config.quant_level, chosen)

    def run(self, candidates: Candidates) -> nn.Module | None:
        """Search, and return the best model with its ``tuning`` result.

        Returns:
            None only if the goal was missed and ``on_miss="none"``.

        Raises:
            GoalMissedError: The goal was missed and ``on_miss="raise"``.
        """
        space = candidates.space if self._is_planned else _without_lower(candidates.space)
        study = TuningStudy(
            space,
            self._about(space, candidates.reference),
            options.resume_from or options.workspace,
            must_exist=options.resume_from is not None,
            directions=self._directions(),
        )
        goal, baseline = self._baseline(candidates, study)
        probes = ModelProbes(
            space,
            candidates.reference,
            candidates.watched,
            lambda: self._labelled(candidates),
            self._loss,
            options.random_seed,
            study,
        )
        self._began = time.monotonic()
        reason = run_search(
            self._strategy,
            Search(space, goal, probes, options.random_seed),
            study,
            Limits(self._limits.max_trials, self._limits.timeout),
            lambda recipe: self._measure(candidates, recipe, goal, baseline),
            lambda trials: self._noted(candidates, trials, goal),
        )
        trials = tuple(trial for trial in study.trials() if trial.state in ("complete", "cut"))
        best = self._best(trials, goal)
        result = TuningResult(space, goal, self._name, trials, best, reason, baseline, {}, self._aim)
        return self._concluded(candidates, result, probes)

    # ------------------------------------------------------------------------------------------- before

    @property
    def _is_planned(self) -> bool:
        return isinstance(self._strategy, PlannedStrategy)

    def _about(self, space: Space, model: nn.Module) -> dict[str, object]:
        """All that makes two searches the same one."""
        keywords = {key: _plain(value) for key, value in (self._limits.strategy_kwargs or {}).items()}
        limits = self._limits.replace(max_trials=1, timeout=0.0, on_miss="best", strategy_kwargs=keywords)
        return {
            "model": type(model).__name__,
            "strategy": self._name,
            "seed": options.random_seed,
            "ends at the goal": self._limits.timeout == 0,
            "config": self._config.replace(tuning_criterion=limits).to_dict()["data"],
            "operations": _digest(repr(space).encode()),
            "weights": _fingerprint(model),
            "evaluation": "eval_func" if self._evaluator.measure is None else repr(self._evaluator.measure),
        }

    def _directions(self) -> dict[str, str]:
        """What Optuna is told.

        Objectives are measured on a machine that is never twice the same, so a search that ends at its goal, which does
        not look at them, leaves them out: then equal seeds propose equal trials.
        """
        higher = self._criterion.higher_is_better
        others = [term for term in self._aim.terms if term.name != ACCURACY] if self._limits.timeout > 0 else []
        return {ACCURACY: _direction(higher)} | {term.name: _direction(term.higher_is_better) for term in others}

    def _baseline(self, candidates: Candidates, study: TuningStudy) -> tuple[Goal, dict[str, float]]:
        """The goal, from the score of the float model, which is evaluated once for a study."""
        known = study.remembered("baseline")
        if known is None:
            score, objectives = measured(
                self._aim.objectives(), self._evaluator.baseline, candidates.reference, self._inputs(candidates)
            )
            known = {"score": score, "objectives": objectives}
            study.remember("baseline", known)
        baseline = float(known["score"])
        target = self._criterion.target(baseline)
        higher = self._criterion.higher_is_better
        if self._limits.performance_only:
            return Goal(baseline, -math.inf if higher else math.inf, higher), dict(known["objectives"])
        logger.info("Accuracy in float: %.4f; the goal is %.4f.", baseline, target)
        if not self._criterion.is_met(baseline, baseline):
            message = (
                f"The float model scores {baseline:.4f} and misses the goal of {target:.4f} itself: tolerable_loss="
                f"{self._criterion.tolerable_loss} asks for a gain, which rounding gives by chance alone."
            )
            warn_user(message, InexactWarning)
        return Goal(baseline, target, higher), dict(known["objectives"])

    def _labelled(self, candidates: Candidates) -> list[tuple[Inputs, object]]:
        """Batches to measure sensitivity on: of calibration, and where these have no labels, of evaluation."""
        own = candidates.labelled_batches(_PROBED_BATCHES)
        if any(label is not None for _, label in own):
            return own
        return [*own, *self._evaluator.labelled_batches(1 if own else _PROBED_BATCHES)]

    def _inputs(self, candidates: Candidates) -> list[Inputs]:
        """A batch to measure latency on; read once, and only if an objective may run the model."""
        if self._batch is None:
            is_wanted = any(hasattr(objective, "measure") for objective in self._aim.objectives().values())
            batches = (candidates.labelled_batches(1) or self._evaluator.labelled_batches(1)) if is_wanted else []
            self._batch = [inputs for inputs, _ in batches]
        return self._batch

    # ------------------------------------------------------------------------------------------- a trial

    def _measure(self, candidates: Candidates, recipe: Recipe, goal: Goal, baseline: Mapping[str, float]) -> Measured:
        began = time.perf_counter()
        model = candidates.candidate(recipe)
        hopeless = (lambda bound: not goal.is_met(bound)) if self._limits.early_stop else None
        try:
            score, objectives = measured(
                self._aim.objectives(),
                lambda: self._evaluator.score(model, hopeless),
                model,
                self._inputs(candidates),
            )
        except GoalOutOfReach as cut:
            return Measured(cut.score, dict.fromkeys(baseline, math.nan), time.perf_counter() - began, is_cut=True)
        return Measured(score, objectives, time.perf_counter() - began)

    def _noted(self, candidates: Candidates, trials: Sequence[Trial], goal: Goal) -> None:
        """Keep the best model, and show how the last trial did."""
        latest, best = max(trials, key=lambda trial: trial.number), self._best(trials, goal)
        if best is not None:
            candidates.keep(best.recipe)
        left = self._limits.timeout - (time.monotonic() - self._began) if self._limits.timeout else None
        line = trial_line(latest, candidates.space, goal, best, most=self._limits.max_trials, remaining=left)
        logger.info(line)
        if sys.stderr.isatty():
            from rich.console import Console

            Console(stderr=True, highlight=False, markup=False).print(line)

    def _best(self, trials: Sequence[Trial], goal: Goal) -> Trial | None:
        """Where time was given, the best by the objectives; else the last that met the goal, where the search ended."""
        met = [trial for trial in trials if trial.is_met]
        return met[-1] if met and not self._limits.timeout else choose(trials, self._aim, goal)

    # ------------------------------------------------------------------------------------------- after

    def _concluded(self, candidates: Candidates, result: TuningResult, probes: ModelProbes) -> nn.Module | None:
        best = result.best
        if best is None:
            message = (
                f"The search ended without a trial, as {result.reason}: there is no model to return. Allow more "
                "max_trials or a longer timeout."
            )
            self._give_up(message)
            return None
        if not all(trial.is_met for trial in result.trials):
            result = replace(result, sensitivity=probes.signal_to_noise(result.space.default))
        if sys.stderr.isatty():
            result.print()
        logger.info("The search ended, as %s.", result.reason)
        if not best.is_met:
            message = self._missed(candidates, result, best.score)
            if self._limits.on_miss != "best":
                self._give_up(message, result)
                return None
            warn_user(message, GoalMissedWarning)
        model = candidates.finished(best.recipe)
        attach_tuning(model, result)
        return model

    def _give_up(self, message: str, result: TuningResult | None = None) -> None:
        """Say that there is no model to return, before any is made for good."""
        if self._limits.on_miss != "none":
            raise GoalMissedError(message, result)
        warn_user(message, GoalMissedWarning)

    def _missed(self, candidates: Candidates, result: TuningResult, score: float) -> str:
        criterion, goal = self._criterion, result.goal
        count = len(result.trials)
        tried = "The only trial" if count == 1 else f"The best of {count} trials"
        return (
            f"{tried}, {candidates.kind} model, scores {score:.4f}, the float "
            f"model {goal.baseline:.4f}: expected "
            f"{'at least' if goal.higher_is_better else 'at most'} {goal.target:.4f} ({criterion.criterion} loss "
            f"{criterion.tolerable_loss}). The search ended, as {result.reason}. Leave sensitive layers in float by "
            f"op_name_dict, {candidates.remedy}, or allow a greater tolerable_loss."
        )


def _direction(higher_is_better: bool) -> str:
    return "maximize" if higher_is_better else "minimize"


def _strategy_of(name: str, keywords: Mapping[str, object]) -> Strategy:
    kind = STRATEGIES.get(name)
    try:
        inspect.signature(kind).bind(**keywords)
    except TypeError as error:
        known = [*inspect.signature(kind).parameters]
        unknown = next((key for key in keywords if key not in known), "")
        message = (
            f"TuningCriterion.strategy_kwargs do not fit the strategy {name!r}: {error}. Expected "
            f"{', '.join(known) or 'none'}.{did_you_mean(unknown, known) if unknown else ''}"
        )
        raise ConfigError(message) from None
    return kind(**keywords)


def _without_lower(space: Space) -> Space:
    """A space for samplers, which would try fewer bits as often as anything else."""
    operations = tuple(
        replace(operation, choices=tuple(choice for choice in operation.choices if choice.mode is not Mode.LOWER))
        for operation in space.operations
    )
    return replace(space, operations=operations)


def _plain(value: object) -> object:
    """What stands for an option in files: functions have names alone."""
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _fingerprint(model: nn.Module) -> str:
    """Of all weights, by some values of each: enough to know a model again, the same on every machine."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = held(parameter).detach().flatten()
        some = values[:: max(1, len(values) // _FINGERPRINTED)].float().cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


_FINGERPRINTED = 4096
"""Values of each weight, about."""
