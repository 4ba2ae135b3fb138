"""Fewer bits where the goal leaves room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from inc_torch.tuning._plan import Part, best, best_first, cumulative, fall_back, last_first, with_alphas
from inc_torch.tuning._space import QUANTIZED, Mode, Recipe
from inc_torch.tuning._strategy import STRATEGIES, PlannedStrategy, Search, Stage, Stages


@final
@STRATEGIES.register("lower_bit", summary="the default recipe, then fewer bits for one operation after another")
@dataclass(frozen=True, slots=True)
class LowerBit(PlannedStrategy):
    """The default recipe; if it meets the goal, as many operations with fewer bits as it leaves room for.

    Each operation that has a choice of fewer bits takes it alone, then one more each time, those that did best alone
    first, until the goal is missed. The model to take is the last one that meets the goal: it has most operations of
    fewer bits. If the default recipe misses the goal, operations go back to float as in ``basic``.

    Reference: INC 2.6.1 calls it the lower bit sampler and runs it inside ``basic``; differs in that operations come
    together, not only alone.
    """

    def stages(self, search: Search) -> Stages:
        space = search.space
        names = [operation.name for operation in space.operations if operation.first(Mode.LOWER) is not None]
        outcomes = yield Stage(with_alphas(space, space.default), ends_at_goal=not names)
        found = best(search.goal, outcomes)
        if found.is_met:
            yield from self._lower(search, found.recipe, names)
        else:
            quantized = last_first(space, found.recipe, *QUANTIZED)
            yield from fall_back(search, found.recipe, quantized, blocks=space.blocks[::-1])

    def _lower(self, search: Search, base: Recipe, names: Sequence[str]) -> Part[None]:
        if not names:
            return
        alone = {name: search.space.fallen_back(base, [name], Mode.LOWER) for name in names}
        outcomes = yield Stage(list(alone.values()), ends_at_goal=False)
        order = best_first(search.goal, outcomes, alone)
        together = cumulative(search.space, base, [[name] for name in order], Mode.LOWER)
        for recipe in together:  # the first is known
            (outcome,) = yield Stage([recipe], ends_at_goal=recipe == together[-1])
            if not outcome.is_met:
                return
