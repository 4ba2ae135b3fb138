"""Linear layers on codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from inc_torch import kernels
from inc_torch.inference._codes import kernel_grid
from inc_torch.inference._operations import as_rows
from inc_torch.inference._product import ProductOnCodes
from inc_torch.quantizers import NO_POST_OPERATION, PLAIN_OUTPUT, InputGrid

__all__ = ["LinearOnCodes"]


@final
class LinearOnCodes(ProductOnCodes):
    """``activation(x @ W.T + b + residual)``: codes [..., in] and a residual [..., out] to [..., out]."""

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codes = inputs[0]
        shape = (*codes.shape[:-1], len(self.weights.scale))
        return (torch.empty(shape, dtype=self._written_dtype, device=codes.device),)

    def _product(self, codes: torch.Tensor, grid: InputGrid) -> torch.Tensor:
        weights = self.weights
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            codes,
            grid.scale,
            grid.zero_point,
            weights.prepacked_linear,
            weights.scale,
            weights.zero_points,
            weights.bias,
            *PLAIN_OUTPUT,
            torch.float32,
            *NO_POST_OPERATION,
        )
        return product

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        rows = {role: value for role, value in zip(self.input_roles, inputs, strict=False)}
        return kernels.linear(
            as_rows(rows["input"]),
            self.weights.packed_linear,
            None if self.weights.grid is None else kernel_grid(self.weights.grid),
            self.weights.scale,
            self.weights.bias,
            as_rows(outputs[0]),
            residual=as_rows(rows["residual"]) if "residual" in rows else None,
            dynamic=rows.get("dynamic"),
            **self._kernel_options(),
        )
