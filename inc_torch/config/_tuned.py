"""What configurations share that a search can start from: criteria, and INC's older spellings of them."""

from __future__ import annotations

from typing import ClassVar

from inc_torch.config._base import Config
from inc_torch.config._criteria import AccuracyCriterion, TuningCriterion, absolute_loss, relative_loss
from inc_torch.core.errors import ConfigError

__all__ = ["TunedConfig"]


class TunedConfig(Config):
    """A configuration with an accuracy and a tuning criterion, whose options may also be given directly.

    ``relative`` and ``absolute`` go into a copy of ``accuracy_criterion``, the others into one of
    ``tuning_criterion``. Each subclass declares them as ``InitVar``, in this order.
    """

    __slots__ = ()
    keyword_only_inputs: ClassVar[tuple[str, ...]] = (
        "strategy",
        "relative",
        "absolute",
        "timeout",
        "max_trials",
        "objective",
        "performance_only",
    )

    accuracy_criterion: AccuracyCriterion
    tuning_criterion: TuningCriterion

    def __post_init__(self, *older: object) -> None:
        self._check_fields()
        given = {
            name: value for name, value in zip(TunedConfig.keyword_only_inputs, older, strict=True) if value is not None
        }
        relative, absolute = given.pop("relative", None), given.pop("absolute", None)
        if given:
            object.__setattr__(self, "tuning_criterion", self.tuning_criterion.replace(**given))
        if relative is not None and absolute is not None:
            message = (
                f"{type(self).__name__} got relative={relative!r} and absolute={absolute!r}: "
                "a tolerable loss is one or the other. Leave one out."
            )
            raise ConfigError(message)
        if relative is not None:
            object.__setattr__(self, "accuracy_criterion", relative_loss(self.accuracy_criterion, relative))
        if absolute is not None:
            object.__setattr__(self, "accuracy_criterion", absolute_loss(self.accuracy_criterion, absolute))
        self._check_relations()
