"""The whole range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from inc_torch.quantizers._observers import OBSERVERS, Levels
from inc_torch.quantizers._statistics import TensorStatistics


@final
@OBSERVERS.register("minmax", summary="least and greatest value seen")
@dataclass(frozen=True, slots=True)
class MinMax:
    """From the least value seen to the greatest: nothing is clipped, and one outlier decides the resolution."""

    def range(self, seen: TensorStatistics, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
        return seen.low, seen.high
