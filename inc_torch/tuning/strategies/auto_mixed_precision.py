"""Half precision, then operations back to fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from inc_torch.tuning._arguments import check
from inc_torch.tuning._plan import alone_then_together, in_first_mode
from inc_torch.tuning._space import FALLBACKS, Mode
from inc_torch.tuning._strategy import STRATEGIES, PlannedStrategy, Search, Stages


@final
@STRATEGIES.register("auto_mixed_precision", summary="bf16 or fp16 where possible, then operations back to fp32")
@dataclass(frozen=True, slots=True)
class AutoMixedPrecision(PlannedStrategy):
    """Starts with every operation in bf16 or fp16 that can be, then puts some of them back to fp32.

    1. all operations of one kind, kinds in alphabetical order (``quant_level`` 0 and ``"auto"``);
    2. each operation alone, from the last to the first, then one more each time, those that did best alone first
       (``quant_level`` 1 and ``"auto"``).

    Reference: INC 2.6.1 ``auto_mixed_precision``; differs in that operations alone come in the order of the model at
    every level, and that they come together starting from all in half precision.

    Attributes:
        quant_level: 0, 1 or ``"auto"``: which of the two steps are taken.
    """

    quant_level: Literal["auto", 0, 1] = "auto"

    def __post_init__(self) -> None:
        level: object = self.quant_level
        is_level = level in ("auto", 0, 1) and not isinstance(level, bool)
        check(is_level, "auto_mixed_precision", "quant_level", level, "'auto', 0 or 1")

    def stages(self, search: Search) -> Stages:
        space = search.space
        everything = [operation.name for operation in space.operations]
        start = in_first_mode(space, space.default, everything, FALLBACKS)
        half = space.in_modes(start, Mode.BFLOAT16, Mode.FLOAT16)
        able = [operation for operation in reversed(half) if operation.first(Mode.FLOAT32) is not None]
        by_kind = [
            space.fallen_back(start, [operation.name for operation in able if operation.kind == kind], Mode.FLOAT32)
            for kind in sorted({operation.kind for operation in able})
        ]
        kinds = [] if self.quant_level == 1 else by_kind
        alone = [] if self.quant_level == 0 else [operation.name for operation in able]
        yield from alone_then_together(search, start, alone, Mode.FLOAT32, before=[start, *kinds])
