"""Rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from inc_torch import kernels
from inc_torch.inference._operations import Operation

__all__ = ["Rotate"]


@final
@dataclass(frozen=True)
class Rotate(Operation):
    """``x * cosine + cat(-second, first) * sine`` of the halves of x along the last dimension (arXiv:2104.09864).

    Inputs are x [batch, heads, length, size], and cosine and sine [batch or 1, 1, length, size]; the output is dense.
    """

    @property
    def input_roles(self) -> tuple[str, ...]:
        return ("input", "cosine", "sine")

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = inputs[0]
        return (torch.empty(values.shape, dtype=values.dtype, device=values.device),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, cosine, sine = inputs
        first, second = values.chunk(2, -1)
        return (values * cosine + torch.cat([-second, first], -1) * sine,)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        values, cosine, sine = inputs
        return kernels.rotate(values, cosine, sine, outputs[0])
