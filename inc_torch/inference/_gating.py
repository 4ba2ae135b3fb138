"""Gated linear units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from inc_torch import kernels
from inc_torch.inference._codes import kernel_grid
from inc_torch.inference._operations import Operation, activated, as_rows
from inc_torch.quantizers import InputGrid, encode

__all__ = ["Gate"]


@final
@dataclass(frozen=True)
class Gate(Operation):
    """``activation(gate) * values``, as float32 or as codes; both inputs are [..., n], and may be parts of a row.

    Attributes:
        activation: A name of `ACTIVATIONS`.
        output_grid: Of what comes out; None is float32.
    """

    activation: str
    output_grid: InputGrid | None = None

    @property
    def input_roles(self) -> tuple[str, ...]:
        return ("gate", "up")

    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gate, _ = inputs
        dtype = torch.float32 if self.output_grid is None else torch.uint8
        return (torch.empty(gate.shape, dtype=dtype, device=gate.device),)

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gate, values = inputs
        result = activated(gate, self.activation) * values
        return (result if self.output_grid is None else encode(result, self.output_grid, self.output_grid.shift),)

    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        gate, values = inputs
        return kernels.gated(
            as_rows(gate),
            as_rows(values),
            as_rows(outputs[0]),
            activation=kernels.Activation[self.activation.upper()],
            output_grid=None if self.output_grid is None else kernel_grid(self.output_grid),
        )
