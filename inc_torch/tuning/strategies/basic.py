"""Options of kinds of operations first, then float where it helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.tuning._plan import by_samples, fall_back, last_first, tune_alpha, tune_kinds
from inc_torch.tuning._space import QUANTIZED
from inc_torch.tuning._strategy import STRATEGIES, PlannedStrategy, Search, Stages


@final
@STRATEGIES.register("basic", summary="options of each kind of operation, then operations back to float")
@dataclass(frozen=True, slots=True)
class Basic(PlannedStrategy):
    """Goes from what costs nothing at inference to what costs most, for each number of calibration samples.

    1. Each alpha of smoothing, if there are several.
    2. Every combination of the options of each kind of operation, the default first, the last kind fastest.
    3. Operations that can be static and dynamic: all of them dynamic.
    4. From the best so far, for bf16, fp16 and fp32: blocks, from the last on, one more each time; each operation
       alone, from the last to the first; then one more operation each time, those that did best alone first.

    Reference: INC 2.6.1 ``basic``; differs in that no recipe is tried twice, and that lower bits are a strategy of
    their own, ``lower_bit``. The best so far is that of this number of samples, the last of equal ones.
    """

    def stages(self, search: Search) -> Stages:
        space = search.space
        for default in by_samples(space):
            base = yield from tune_alpha(search, default)
            found = yield from tune_kinds(search, base)
            names = last_first(space, found.recipe, *QUANTIZED)
            yield from fall_back(search, found.recipe, names, blocks=space.blocks[::-1])
