"""How a configuration of mixed precision is searched by, in the words of the tuner."""

from __future__ import annotations

from inc_torch.config import MixedPrecisionConfig, TuningCriterion

__all__ = ["searched"]

_STRATEGY = "auto_mixed_precision"


def searched(config: MixedPrecisionConfig) -> MixedPrecisionConfig:
    """The same with the strategy that ``quant_level`` means, unless the user has chosen one.

    Example:
        >>> searched(MixedPrecisionConfig(quant_level=1)).tuning_criterion.strategy
        'auto_mixed_precision'
    """
    limits = config.tuning_criterion
    if limits.strategy not in (TuningCriterion().strategy, _STRATEGY):
        return config
    keywords = {"quant_level": config.quant_level, **(limits.strategy_kwargs or {})}
    return config.replace(tuning_criterion=limits.replace(strategy=_STRATEGY, strategy_kwargs=keywords))
