"""Everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.tuning._combinations import by_operation
from inc_torch.tuning._strategy import STRATEGIES, PlannedStrategy, Search, Stage, Stages


@final
@STRATEGIES.register("exhaustive", summary="every combination of the options of each operation")
@dataclass(frozen=True, slots=True)
class Exhaustive(PlannedStrategy):
    """Every combination of the options of each operation in the mode of its default; the last operation fastest.

    For each number of calibration samples, and each alpha of smoothing. Nothing falls back to float. Recipes are made
    as they are asked for: 4 options of 100 operations are 4 ** 100 of them.

    Reference: INC 2.6.1 ``exhaustive``; differs in that the list is not built before the first trial.
    """

    def stages(self, search: Search) -> Stages:
        yield Stage(by_operation(search.space))
