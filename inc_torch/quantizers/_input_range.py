"""The range that an input has had during training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from inc_torch.core.ranks import Ranks
from inc_torch.quantizers._codes import InputGrid, input_grid
from inc_torch.quantizers._spec import QuantScheme

__all__ = ["InputRange", "fold_pending", "pending_extremes"]

SLOWEST_RATE = 0.05
"""Weight of the newest step after the first 20."""


@final
@dataclass(slots=True)
class InputRange:
    """A moving average of the least and greatest value of each optimizer step, which always contains 0.

    `observe` notes the extremes of a batch where the batch lies, without waiting for the device. `fold_pending`
    brings what was noted into the average, once a step, for all inputs and ranks together. So the extremes of a step
    are those of all its micro-batches on all ranks: N ranks, M accumulated micro-batches and one big batch give the
    same range. Until the first step is folded there is none.

    The step of number ``t`` enters with weight ``max(1/t, 0.05)``: the plain mean of the first 20 steps, an
    exponential average afterwards. So the first step counts no more than the others, and no warm-up bias is left. A
    rate of 0.01 that starts from the first batch, as in torch.ao, lags hundreds of steps behind activations that
    grow; what grew beyond the range is clipped and gets no gradient. Without an average at all, one outlier would
    decide the resolution of the whole model.

    A step in which this input was empty is left out, and so is one in which any micro-batch on any rank held
    infinities or NaN: as one big batch would be.

    No buffers: ``.half()``, broadcasting of buffers and ``state_dict`` do not touch them.

    Attributes:
        low: Least value, at most 0.
        high: Greatest value, at least 0.
        steps: How many steps were folded.
        pending: What was noted since, float32 ``[-least, greatest]`` so that both grow; None if nothing was.
        scheme: How inputs are quantized.
        grid: The grid that covers the range, or None as long as no step was folded. Made by `fold`, so that a
            forward does not compute it.
        traced_grid: Its scale and zero point as one tensor, which is written to: torch.compile takes Python numbers
            for constants, and would compile anew at each step.
    """

    low: float = 0.0
    high: float = 0.0
    steps: int = 0
    pending: torch.Tensor | None = field(default=None, compare=False)
    scheme: QuantScheme = field(default_factory=QuantScheme)
    grid: InputGrid | None = field(init=False, default=None, compare=False)
    traced_grid: torch.Tensor = field(init=False, default_factory=lambda: torch.zeros(2), compare=False)

    def __post_init__(self) -> None:
        if self.steps:
            self._make_grid()

    def observe(self, values: torch.Tensor) -> None:
        """Note the extremes of a batch; one pass over it, and nothing is waited for."""
        if values.numel() == 0:
            return
        least, greatest = torch.aminmax(values.detach())
        extremes = torch.stack([least.neg(), greatest]).to(torch.float32)
        if self.pending is not None:  # a loaded state lies on the CPU
            extremes = torch.maximum(self.pending.to(extremes.device), extremes)
        self.pending = extremes

    def fold(self, low: float, high: float) -> None:
        """Take the extremes of one step into the average, unless there are none or they are not finite."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return
        self.steps += 1
        rate = max(1.0 / self.steps, SLOWEST_RATE)
        self.low += rate * (min(low, 0.0) - self.low)
        self.high += rate * (max(high, 0.0) - self.high)
        self._make_grid()

    def _make_grid(self) -> None:
        self.grid = input_grid(self.low, self.high, self.scheme)
        self.traced_grid.copy_(torch.tensor([self.grid.scale, self.grid.zero_point]))


def fold_pending(ranges: Sequence[InputRange], ranks: Ranks, device: torch.device) -> None:
    """Fold what all ranks noted since the last call, as one step: one collective and one transfer to the host.

    Args:
        ranges: Of one model, in the same order on all ranks.
        ranks: Who observes together; with more than one, each has to call this.
        device: Where ranks reduce.
    """
    if not ranges or (ranks.count == 1 and all(seen.pending is None for seen in ranges)):
        return
    extremes = pending_extremes(ranges, ranks, device).tolist()
    for seen, (negative_low, high) in zip(ranges, extremes, strict=True):
        seen.pending = None
        seen.fold(-negative_low, high)


def pending_extremes(ranges: Sequence[InputRange], ranks: Ranks, device: torch.device) -> torch.Tensor:
    """What all ranks noted, [ranges, 2] float32 on ``device``; -inf where nobody did, inf where it is not finite."""
    nothing = torch.full((2,), -math.inf, device=device)
    rows = [nothing if seen.pending is None else seen.pending.to(device) for seen in ranges]
    # NaN becomes inf: reductions differ in which of NaN and a number is the greater.
    return ranks.maximum_(torch.nan_to_num(torch.stack(rows), nan=math.inf, posinf=math.inf, neginf=-math.inf))
