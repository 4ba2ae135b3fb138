"""Scaled dot-product attention that reads heads where they lie, and may write codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from inc_torch import kernels
from inc_torch.inference._codes import kernel_grid
from inc_torch.inference._operations import Operation
from inc_torch.quantizers import InputGrid, encode

__all__ = ["Attend"]


@final
@dataclass(frozen=True)
class Attend(Operation):
    """``softmax(q @ k.T * scale + mask) @ v``; matrix products in bfloat16, the rest in float32.

    Inputs are query [batch, heads, length, size], key and value [batch, key heads, key length, size], each any view
    whose last dimension is dense, and the additive mask if there is one. The output is [batch, length, heads, size],
    dense.

    Attributes:
        scale: What products are multiplied with; None is ``size ** -0.5``.
        causal: A query sees no key after it.
        output_grid: Of what comes out; None is float32.
    """

    scale: float | None
    causal: bool
    output_grid: InputGrid | None = None

    @property
    def input_roles(self) -> tuple[str, ...]:
        return ("query", "key", "value", "mask")

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query = inputs[0]
        batch, heads, length, _ = query.shape
        size = inputs[2].shape[-1]
        dtype = torch.float32 if self.output_grid is None else torch.uint8
        return (torch.empty((batch, length, heads, size), dtype=dtype, device=query.device),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, *masks = inputs
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
        query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
        scores = (query @ key.transpose(-1, -2)).float().mul_(self._scale(query))
        for mask in masks:
            scores += mask
        if self.causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
            scores.masked_fill_(hidden, float("-inf"))
        is_blind = scores.amax(-1, keepdim=True) == float("-inf")  # such a query gets 0, as from torch
        result = (
            (scores.softmax(-1).masked_fill_(is_blind, 0.0).to(torch.bfloat16) @ value)
            .transpose(1, 2)
            .float()
            .contiguous()
        )
        return (result if self.output_grid is None else encode(result, self.output_grid, self.output_grid.shift),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        query, key, value, *masks = inputs
        return kernels.attention(
            query,
            key,
            value,
            outputs[0],
            self._scale(query),
            masks[0] if masks else None,
            causal=self.causal,
            output_grid=None if self.output_grid is None else kernel_grid(self.output_grid),
        )

    def _scale(self, query: torch.Tensor) -> float:
        return float(query.shape[-1] ** -0.5 if self.scale is None else self.scale)
