"""A moving average of the extremes of batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from inc_torch.core.errors import ConfigError
from inc_torch.quantizers._observers import OBSERVERS, Levels
from inc_torch.quantizers._statistics import TensorStatistics


@final
@OBSERVERS.register("ema_minmax", summary="moving average of the least and greatest value of each batch")
@dataclass(frozen=True, slots=True)
class EmaMinMax:
    """``m <- m + rate * (extreme of the batch - m)``, starting from the extremes of the first batch.

    Later batches count more than earlier ones, so the order matters. With one batch it is ``minmax``.

    Reference: INC 2.6.1 ``MovingAverageMinMaxObserver`` of fake-quant, which averages before it takes in 0, as here.

    Attributes:
        rate: Weight of the newest batch, above 0 and at most 1; 1 takes the last batch alone.

    Example:
        >>> seen = TensorStatistics.of(torch.tensor([-1.0, 2.0]))
        >>> seen.add(TensorStatistics.of(torch.tensor([-1.0, 4.0])))
        >>> low, high = EmaMinMax(rate=0.5).range(seen, Levels.of(8, signed=False))
        >>> low.item(), high.item()
        (-1.0, 3.0)
    """

    rate: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            message = f"{__name__}: rate is {self.rate}; it must be above 0 and at most 1."
            raise ConfigError(message)

    def range(self, seen: TensorStatistics, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
        return self._average(seen.batch_lows).clamp(max=0.0), self._average(seen.batch_highs).clamp(min=0.0)

    def _average(self, extremes: list[torch.Tensor]) -> torch.Tensor:
        ages = torch.arange(len(extremes) - 1, -1, -1, dtype=torch.float64)
        weights = self.rate * (1 - self.rate) ** ages
        weights[0] /= self.rate
        return weights @ torch.stack(extremes)
