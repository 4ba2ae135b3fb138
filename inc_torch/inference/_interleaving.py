"""Shuffled channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch

from inc_torch import kernels
from inc_torch.inference._operations import Operation

__all__ = ["Interleave"]

_PAIR: Final = 2


@final
@dataclass(frozen=True)
class Interleave(Operation):
    """The first channels of all parts, then all second ones, and so on: a shuffle of channels.

    Inputs are the parts [samples, channels, height, width], all of one shape, floats or codes of one grid.

    Attributes:
        parts: How many there are.
    """

    parts: int

    @property
    def input_roles(self) -> tuple[str, ...]:
        return ("first", "second") if self.parts == _PAIR else ()

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        samples, channels, *size = inputs[0].shape
        shape = (samples, channels * len(inputs), *size)
        return (torch.empty_like(inputs[0].new_empty(shape), memory_format=torch.channels_last),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pixels = torch.stack([part.permute(0, 2, 3, 1) for part in inputs], -1).flatten(3)
        return (pixels.permute(0, 3, 1, 2),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        if len(inputs) != _PAIR:
            message = f"{len(inputs)} parts are to be interleaved, expected two."
            raise kernels.OperandError(message)
        return kernels.interleave(inputs[0], inputs[1], outputs[0])
