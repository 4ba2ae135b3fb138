"""As little as possible, then more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from inc_torch.tuning._plan import quantize_kinds
from inc_torch.tuning._strategy import STRATEGIES, PlannedStrategy, Search, Stages


@final
@STRATEGIES.register("conservative", summary="float, with one kind of operation after another quantized while it holds")
@dataclass(frozen=True, slots=True)
class Conservative(PlannedStrategy):
    """Quantizes one group of operations after another, and keeps each with which the goal is still met.

    The groups are the kinds whose names begin with ``conv``, ``matmul``, ``bmm`` and ``linear``, in this order; other
    kinds stay in float, bf16 where they can. With none of these nothing is tried. The model to take is the last one
    that meets the goal: it quantizes most.

    Reference: INC 2.6.1 ``conservative``; differs in that a score on the target is enough to keep a group, and that the
    number of trials can be limited.
    """

    def stages(self, search: Search) -> Stages:
        yield from quantize_kinds(search, search.space.default)
