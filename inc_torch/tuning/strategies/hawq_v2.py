"""Operations back to float by the curvature of the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from inc_torch.tuning._arguments import check
from inc_torch.tuning._plan import best, cumulative, greatest_first, last_first, with_alphas
from inc_torch.tuning._space import QUANTIZED, Mode
from inc_torch.tuning._strategy import STRATEGIES, PlannedStrategy, Search, Stage, Stages


@final
@STRATEGIES.register("hawq_v2", summary="operations back to fp32 by the traces of their Hessians")
@dataclass(frozen=True, slots=True)
class HawqV2(PlannedStrategy):
    """The default recipe, then one more operation in fp32 each time, that with the greatest mean Hessian trace first.

    Where the loss bends most, rounding of weights costs most.

    Reference: Dong et al., HAWQ-V2, NeurIPS 2020; INC 2.6.1 ``hawq_v2``; differs in that all recipes start from the
    default one, that the greatest trace comes first even where lower scores are better, and that several alphas of
    smoothing are tried at the start.

    Attributes:
        hawq_v2_loss: Takes the output of the model and the label, returns the loss whose Hessian is meant. Used where
            the traces are measured.
    """

    hawq_v2_loss: Callable[..., object] | None = None

    def __post_init__(self) -> None:
        loss = self.hawq_v2_loss
        check(loss is None or callable(loss), "hawq_v2", "hawq_v2_loss", loss, "a function of output and label")

    def stages(self, search: Search) -> Stages:
        space = search.space
        outcomes = yield Stage(with_alphas(space, space.default))
        base = best(search.goal, outcomes).recipe
        names = last_first(space, base, *QUANTIZED)
        able = [name for name in names if space.operation(name).first(Mode.FLOAT32) is not None]
        if able:
            traces = search.probes.hessian_traces()
            order = greatest_first({name: traces[name] for name in able})
            yield Stage(cumulative(space, base, [[name] for name in order], Mode.FLOAT32))
