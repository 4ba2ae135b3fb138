"""The default, then little, then all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.tuning._plan import best, quantize_kinds, with_alphas
from inc_torch.tuning._strategy import STRATEGIES, PlannedStrategy, Search, Stage, Stages
from inc_torch.tuning.strategies.basic import Basic


@final
@STRATEGIES.register("auto", summary="the default recipe, then conservative, then basic")
@dataclass(frozen=True, slots=True)
class Auto(PlannedStrategy):
    """What `PostTrainingQuantConfig` does unless told otherwise; each step only if the ones before missed the goal.

    1. The default recipe, with each alpha of smoothing.
    2. ``conservative``, with the best alpha.
    3. ``basic``.

    Reference: INC 2.6.1 ``auto``; differs in that the first recipe of ``basic``, known by then, takes no trial.
    """

    def stages(self, search: Search) -> Stages:
        outcomes = yield Stage(with_alphas(search.space, search.space.default))
        if any(outcome.is_met for outcome in outcomes):
            return
        any_kept = yield from quantize_kinds(search, best(search.goal, outcomes).recipe)
        if not any_kept:
            yield from Basic().stages(search)
