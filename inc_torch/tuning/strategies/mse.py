"""Operations back to float by the errors of their outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.tuning._plan import by_samples, fall_back, greatest_first, last_first, tune_alpha, tune_kinds
from inc_torch.tuning._space import QUANTIZED
from inc_torch.tuning._strategy import STRATEGIES, PlannedStrategy, Search, Stages

_MOST_OPTIONS = 5


@final
@STRATEGIES.register("mse", summary="few options, then operations back to float by the error of their outputs")
@dataclass(frozen=True, slots=True)
class Mse(PlannedStrategy):
    """As ``basic``, except that few options are tried, and operations fall back in the order of their errors.

    As many options as there are quantized operations, 5 at most. Then the output of each operation is compared with
    that in float, once for the best recipe: the operation with the greatest error is the first to be tried alone. No
    blocks.

    Reference: INC 2.6.1 ``mse``, which fails when it compares; differs in that the greatest error comes first even
    where lower scores are better.
    """

    def stages(self, search: Search) -> Stages:
        space = search.space
        for default in by_samples(space):
            base = yield from tune_alpha(search, default)
            quantized = space.in_modes(base, *QUANTIZED)
            found = yield from tune_kinds(search, base, most=min(max(len(quantized), 1), _MOST_OPTIONS))
            names = last_first(space, found.recipe, *QUANTIZED)
            if names:
                errors = search.probes.output_errors(found.recipe)
                yield from fall_back(
                    search, found.recipe, greatest_first({name: errors.get(name, 0.0) for name in names})
                )
