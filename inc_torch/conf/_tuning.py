"""The section ``tuning``, and the criteria that say the same."""

from __future__ import annotations

from typing import Any

from inc_torch.conf._schema import Field, Section
from inc_torch.conf._words import as_it_is, count, one_or_more, positive, share
from inc_torch.config import AccuracyCriterion, TuningCriterion
from inc_torch.config._checks import Place, flag, list_of, number, text
from inc_torch.core.errors import ConfigError

__all__ = ["TUNING", "accuracy_criterion", "tuning_criterion"]

_ELSEWHERE = "it is of a paid service; the strategies 'bayesian' and 'tpe' search in the same way"


def _strategy(value: object, place: Place) -> str:
    return TuningCriterion(strategy=text(value, place)).strategy


TUNING = Section(
    {
        "strategy": Section(
            {
                "name": Field(_strategy, "basic"),
                "sigopt_api_token": Field(as_it_is, idle=_ELSEWHERE),
                "sigopt_project_id": Field(as_it_is, idle=_ELSEWHERE),
                "sigopt_experiment_name": Field(as_it_is, idle=_ELSEWHERE),
                "accuracy_weight": Field(as_it_is, idle="strategies here take weights of objectives alone"),
                "latency_weight": Field(as_it_is, idle="strategies here take weights of objectives alone"),
                "confidence_batches": Field(positive),
                "hawq_v2_loss": Field(as_it_is),
            },
            present=True,
        ),
        "accuracy_criterion": Section(
            {"relative": Field(share), "absolute": Field(share), "higher_is_better": Field(flag, default=True)},
            present=True,
        ),
        "objective": Field(text, "performance"),
        "multi_objectives": Section(
            {
                "objective": Field(one_or_more(text), ()),
                "weight": Field(one_or_more(share)),
                "higher_is_better": Field(list_of("a list of True and False", flag)),
            }
        ),
        "exit_policy": Section(
            {
                "timeout": Field(number("a number of seconds, 0 or more", lambda x: x >= 0), 0.0),
                "max_trials": Field(positive, 100),
                "performance_only": Field(flag, default=False),
            },
            present=True,
        ),
        "random_seed": Field(count),
        "tensorboard": Field(flag, default=False, idle="results have tables and pictures of their own"),
        "workspace": Section({"path": Field(text), "resume": Field(text)}, present=True),
        "diagnosis": Field(as_it_is, default=False, idle="the report of a result lists every module"),
    },
    present=True,
)


def accuracy_criterion(tuning: Any) -> AccuracyCriterion:  # noqa: ANN401  the section `TUNING`
    """The goal of a search.

    Raises:
        ConfigError: Both kinds of loss are given.
    """
    section = tuning.accuracy_criterion
    if section.relative is not None and section.absolute is not None:
        message = (
            f"tuning.accuracy_criterion has relative={section.relative!r} and absolute={section.absolute!r}: a "
            "tolerable loss is one or the other. Leave one out."
        )
        raise ConfigError(message)
    if section.absolute is not None:
        return AccuracyCriterion(section.higher_is_better, "absolute", section.absolute)
    loss = 0.01 if section.relative is None else section.relative
    return AccuracyCriterion(section.higher_is_better, "relative", loss)


def tuning_criterion(tuning: Any) -> TuningCriterion:  # noqa: ANN401  the section `TUNING`
    """How a search goes."""
    strategy, policy = tuning.strategy, tuning.exit_policy
    options = {
        name: value
        for name, value in (
            ("confidence_batches", strategy.confidence_batches),
            ("hawq_v2_loss", strategy.hawq_v2_loss),
        )
        if value is not None
    }
    several = tuning.multi_objectives
    return TuningCriterion(
        strategy=strategy.name,
        strategy_kwargs=options or None,
        timeout=policy.timeout,
        max_trials=policy.max_trials,
        objective=tuning.objective if several is None else {k: v for k, v in several.items() if v is not None},
        performance_only=policy.performance_only,
    )
