"""Time of the evaluation."""

from __future__ import annotations

import time
from typing import ClassVar, final

from inc_torch.tuning._objectives import OBJECTIVES, Objective

__all__ = ["Performance"]


@final
@OBJECTIVES.register("performance", summary="seconds that the evaluation takes, loading of data included")
class Performance(Objective):
    """Wall-clock seconds of one evaluation, all that it does included.

    Source: INC 2.6.1: ``performance``.
    """

    representation: ClassVar[str] = "Duration (seconds)"

    def start(self) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def end(self) -> float:
        """Return the seconds."""
        return time.perf_counter() - self._began
