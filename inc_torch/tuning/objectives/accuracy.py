"""The score itself."""

from __future__ import annotations

from typing import ClassVar, final

from inc_torch.tuning._objectives import ACCURACY, OBJECTIVES, Objective

__all__ = ["Accuracy"]


@final
@OBJECTIVES.register(ACCURACY, summary="the score itself")
class Accuracy(Objective):
    """The score that the evaluation returns; `choose` takes it from there, in the direction of the goal.

    Source: INC 2.6.1: ``accuracy``.
    """

    representation: ClassVar[str] = "Accuracy"
    higher_is_better: ClassVar[bool] = True
