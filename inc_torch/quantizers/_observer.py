"""The range that an input has had during training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import distributed

from inc_torch.quantizers._codes import InputGrid, input_grid
from inc_torch.quantizers._spec import QuantScheme

__all__ = ["InputRange"]

SLOWEST_RATE = 0.05
"""Weight of the newest batch after the first 20."""


@final
@dataclass(slots=True)
class InputRange:
    """A moving average of the least and greatest value of each batch, which always contains 0.

    The batch of number ``t`` enters with weight ``max(1/t, 0.05)``: the plain mean of the first 20
    batches, an exponential average afterwards. So the first batch counts no more than the others,
    and no warm-up bias is left. A rate of 0.01 that starts from the first batch, as in torch.ao, lags
    hundreds of steps behind activations that grow; what grew beyond the range is clipped and gets no
    gradient. Without an average at all, one outlier would decide the resolution of the whole model.

    With several processes the extremes are those of all ranks (one reduction of two numbers a module
    and step), so the ranges stay equal everywhere. Batches that are empty or hold infinities or NaN
    are left out.

    Plain numbers, not buffers: ``.half()``, broadcasting of buffers and ``state_dict`` do not touch them.
    """

    low: float = 0.0
    high: float = 0.0
    batches: int = 0

    def observe(self, values: torch.Tensor) -> None:
        """Take in one batch."""
        low, high = _extremes(values)
        if not (math.isfinite(low) and math.isfinite(high)):
            return
        self.batches += 1
        rate = max(1.0 / self.batches, SLOWEST_RATE)
        self.low += rate * (min(low, 0.0) - self.low)
        self.high += rate * (max(high, 0.0) - self.high)

    def grid(self, scheme: QuantScheme) -> InputGrid:
        """The grid that covers the range."""
        return input_grid(self.low, self.high, scheme)


def _extremes(values: torch.Tensor) -> tuple[float, float]:
    """Least and greatest value on all ranks; infinite if there is none."""
    values = values.detach()
    if values.numel():
        bounds = torch.stack([values.amin().neg_(), values.amax()]).to(torch.float32)
    else:
        bounds = torch.full((2,), -math.inf, device=values.device)
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(bounds, op=distributed.ReduceOp.MAX)
    negative_low, high = bounds.tolist()
    return -negative_low, high
