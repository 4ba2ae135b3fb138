"""What a tuning run is judged by: the accuracy it must keep, and what it may spend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from inc_torch.config._base import Config, config, option
from inc_torch.config._checks import (
    Check,
    Place,
    choice,
    flag,
    instance_of,
    integer,
    items_of,
    list_of,
    mapping,
    number,
    optional,
)
from inc_torch.config._readonly import FrozenDict

__all__ = ["ACCURACY", "TUNING", "AccuracyCriterion", "TuningCriterion", "absolute_loss", "relative_loss"]

_DEFAULT_STRATEGY, _DEFAULT_OBJECTIVE = "basic", "performance"
_ELSEWHERE = {"sigopt": " That is a paid service of others; 'bayesian' and 'tpe' search in the same way."}

Objectives = Sequence[str] | Mapping[str, object]


def _strategy(value: object, place: Place) -> str:
    """A registered strategy, looked up now, as users may add some; the default is known without importing them all."""
    if value == _DEFAULT_STRATEGY:
        return _DEFAULT_STRATEGY
    from inc_torch.tuning import STRATEGIES

    if isinstance(value, str) and value in _ELSEWHERE:
        raise place.error(value, f"one of {', '.join(map(repr, STRATEGIES.names()))}", _ELSEWHERE[value])
    return choice(STRATEGIES.names())(value, place)


def _objective_name(value: object, place: Place) -> str:
    if value == _DEFAULT_OBJECTIVE:
        return _DEFAULT_OBJECTIVE
    from inc_torch.tuning import OBJECTIVES

    return choice(OBJECTIVES.names())(value, place)


def _objective(value: object, place: Place) -> Objectives:
    """One name, a list of names, or INC's dict of parallel lists."""
    if not isinstance(value, Mapping):
        listed = list_of("a name, a list of names or a dict", _objective_name)(value, place)
        if not listed:
            raise place.error(value, "at least one objective")
        return listed
    parts = items_of(value, place, "a dict", ("objective", "weight", "higher_is_better"))
    objectives = list_of("a list of names", _objective_name)(parts.get("objective"), place.item("objective"))
    checked: dict[str, object] = {"objective": objectives}
    checks: dict[str, Check[tuple[object, ...]]] = {
        "weight": list_of("a list of numbers", number("a number of 0 or more", lambda x: x >= 0)),
        "higher_is_better": list_of("a list of bools", flag),
    }
    for key, check in checks.items():
        if key in parts:
            entries = check(parts[key], place.item(key))
            if len(entries) != len(objectives):
                want = f"as many entries as there are objectives, {len(objectives)}"
                raise place.item(key).error(parts[key], want)
            checked[key] = entries
    return FrozenDict(checked)


@final
@config
class AccuracyCriterion(Config):
    """How much accuracy a compressed model may lose.

    With ``base`` the float model's score and ``t`` the tolerable loss, the goal is ``base * (1 - t)``
    (relative) or ``base - t`` (absolute), with plus signs where lower is better.

    Args:
        higher_is_better: Whether a greater score is a better one.
        criterion: ``"relative"`` or ``"absolute"``.
        tolerable_loss: The ``t`` above; an int is as good as a float. A negative one asks for a gain.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> AccuracyCriterion(criterion="absolute", tolerable_loss=1).absolute
        1.0
    """

    higher_is_better: bool = option(flag, default=True)
    criterion: str = option(choice(("relative", "absolute")), default="relative")
    tolerable_loss: float = option(number("a finite number", lambda _: True), default=0.01)

    @property
    def relative(self) -> float | None:
        """The tolerable loss if it is relative, else None."""
        return self.tolerable_loss if self.criterion == "relative" else None

    @property
    def absolute(self) -> float | None:
        """The tolerable loss if it is absolute, else None."""
        return self.tolerable_loss if self.criterion == "absolute" else None

    def target(self, baseline: float) -> float:
        """The worst score that is still good enough, given that of the float model.

        A relative loss is a share of ``|baseline|``, so that a negative baseline does not turn it into a gain (INC
        2.6.1 multiplies with the signed baseline).

        Example:
            >>> AccuracyCriterion(tolerable_loss=0.5).target(-2.0)
            -3.0
        """
        loss = self.tolerable_loss * (abs(baseline) if self.criterion == "relative" else 1.0)
        return baseline - loss if self.higher_is_better else baseline + loss

    def is_met(self, score: float, baseline: float) -> bool:
        """Whether a score is good enough; the target itself is (INC 2.6.1: not where lower is better)."""
        target = self.target(baseline)
        return score >= target if self.higher_is_better else score <= target


@final
@config
class TuningCriterion(Config):
    """What a search among compressed models tries, for how long, and what it is after.

    Args:
        strategy: Who proposes the next trial: the name of a registered strategy. The default, ``"basic"``, gives way to
            what ``quant_level`` of the quantization config says.
        strategy_kwargs: Options of the strategy.
        timeout: Seconds; 0 stops at the first model that meets the accuracy goal.
        max_trials: Greatest number of trials.
        objective: What is made small (or, for accuracy, great) among models that meet the goal: a name such as
            performance (seconds of an evaluation), latency (milliseconds of a batch), modelsize, footprint and
            accuracy, or of an objective of your own; a list of them; or
            ``{"objective": [...], "weight": [...], "higher_is_better": [...]}``. With ``timeout=0`` the first model
            that meets the goal is taken, and objectives are only shown.
        on_miss: What a search returns that never met the goal: ``"best"``, the best model with a warning;
            ``"none"``, None; or ``"raise"``. Not in INC, which returns None.
        performance_only: The accuracy is not looked at.
        early_stop: An evaluation ends as soon as the goal is out of its reach; only with a loader of known length and
            a metric of which that can be said, such as topk. Not in INC.

    Raises:
        ConfigError: An option is unknown or wrong.

    Example:
        >>> TuningCriterion(max_trials=600, objective="modelsize")
        TuningCriterion(max_trials=600, objective=('modelsize',))
    """

    strategy: str = option(_strategy, default=_DEFAULT_STRATEGY)
    strategy_kwargs: Mapping[str, object] | None = option(optional(mapping), default=None)
    timeout: float = option(number("a number of seconds, 0 or more", lambda x: x >= 0), default=0.0)
    max_trials: int = option(integer("an integer of 1 or more", lambda x: x >= 1), default=100)
    objective: Objectives = option(_objective, default=(_DEFAULT_OBJECTIVE,))
    on_miss: str = option(choice(("best", "none", "raise")), default="best", kw_only=True)
    performance_only: bool = option(flag, default=False, kw_only=True)
    early_stop: bool = option(flag, default=False, kw_only=True)


ACCURACY = instance_of(AccuracyCriterion)
TUNING = instance_of(TuningCriterion)


def relative_loss(criterion: AccuracyCriterion, loss: object) -> AccuracyCriterion:
    """A copy of ``criterion`` that tolerates a relative loss."""
    return criterion.replace(criterion="relative", tolerable_loss=loss)


def absolute_loss(criterion: AccuracyCriterion, loss: object) -> AccuracyCriterion:
    """A copy of ``criterion`` that tolerates an absolute loss."""
    return criterion.replace(criterion="absolute", tolerable_loss=loss)
