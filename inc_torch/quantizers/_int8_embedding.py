"""Embeddings whose rows are int8 codes."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F

from inc_torch.quantizers._int8_module import Int8Module

__all__ = ["Int8Embedding"]


@final
class Int8Embedding(Int8Module):
    """`torch.nn.Embedding` whose rows are int8 codes with a scale each."""

    kind = replaces = "embedding"

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Look up codes and scales, and return their product."""
        rows = F.embedding(input, self.qweight).to(torch.float32)
        scales = F.embedding(input, self.weight_scale.unsqueeze(1))
        return rows.mul_(scales).to(self.float_dtype)
