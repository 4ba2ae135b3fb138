"""Layer norms that write codes beside floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F

from inc_torch import kernels
from inc_torch.inference._codes import kernel_grid
from inc_torch.inference._operations import Operation, as_rows
from inc_torch.quantizers import InputGrid, encode

__all__ = ["Normalize"]


@final
@dataclass(frozen=True)
class Normalize(Operation):
    """Layer norm or RMS norm over the last dimension.

    Inputs are the values, the weight, and the bias if there is one. Outputs are float32 if wanted, then codes if there
    is a grid for them.

    Attributes:
        epsilon: Added to the variance, or to the mean square.
        root_mean_square: Do not take the mean off.
        as_float: The float32 result is an output.
        grid: Of the output that is codes; None is no such output.
    """

    epsilon: float
    root_mean_square: bool = False
    as_float: bool = True
    grid: InputGrid | None = None

    @property
    def output_roles(self) -> tuple[str, ...]:
        return ("output",) * self.as_float + ("codes",) * (self.grid is not None)

    @property
    def input_roles(self) -> tuple[str, ...]:
        return ("input", "weight", "bias")

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = inputs[0]
        dtypes = [torch.float32 if role == "output" else torch.uint8 for role in self.output_roles]
        return tuple(torch.empty(values.shape, dtype=dtype, device=values.device) for dtype in dtypes)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, *affine = inputs
        normalize: Any = F.rms_norm if self.root_mean_square else F.layer_norm
        result: torch.Tensor = normalize(values, values.shape[-1:], *affine, eps=self.epsilon)
        codes = () if self.grid is None else (encode(result, self.grid, self.grid.shift),)
        return (result, *codes) if self.as_float else codes

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        values, *affine = inputs
        weight, bias = (*affine, None, None)[:2]
        for parameter in affine:
            if not parameter.is_contiguous():  # the step would read a copy, not what the parameter becomes
                message = f"an affine parameter has strides {parameter.stride()}, expected it dense."
                raise kernels.OperandError(message)
        floats = as_rows(outputs[0]) if self.as_float else None
        codes = None if self.grid is None else as_rows(outputs[-1])
        return kernels.layer_norm(
            as_rows(values),
            weight,
            bias,
            self.epsilon,
            floats,
            codes,
            None if self.grid is None else kernel_grid(self.grid),
            root_mean_square=self.root_mean_square,
        )
