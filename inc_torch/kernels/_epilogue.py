"""What a product does to its sums: scale, bias, residual, activation, rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from inc_torch.kernels._arguments import EpilogueArguments
from inc_torch.kernels._checks import check, grid_of, operand, vector
from inc_torch.kernels._packing import PackedWeight
from inc_torch.kernels._program import MANTISSA
from inc_torch.kernels._types import CLAMP, Activation, Clamp, Grid, in_numbers

__all__ = ["Constants", "Finish", "inverse_and_shift"]

FLOATS_AND_CODES = (torch.float32, torch.bfloat16, torch.uint8)
TOP = 255
GREATEST_PRODUCT = 255 * 128
OVERFLOW = 2.0**30
GELUS = (Activation.GELU, Activation.GELU_TANH)
PIECES_PER_UNIT = 31.0 / 5.6
"""Of the table that GELU is looked up in: ``Bump`` in ``source/common.h``."""


def inverse_and_shift(grid: Grid) -> tuple[float, float]:
    """Return what values are multiplied by, and what is then added, to round them to codes."""
    return 1.0 / float(torch.tensor(grid.scale)), MANTISSA + grid.zero_point


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a product.

    Attributes:
        output: Where the result goes; float32, bfloat16 or uint8.
        activation: Of each element.
        output_grid: Of a uint8 output.
        residual: Is added; float32, bfloat16 or uint8.
        residual_grid: Of a uint8 residual.
        activation_after_residual: Whether the activation comes last.
    """

    output: torch.Tensor
    activation: Activation | Clamp
    output_grid: Grid | None
    residual: torch.Tensor | None
    residual_grid: Grid | None
    activation_after_residual: bool

    @property
    def can_fold(self) -> bool:
        """Whether codes follow from a sum, and perhaps codes, by one multiplication and a clamp."""
        clamps = in_numbers(self.activation)[0] <= CLAMP or (self.residual is None and self.activation in GELUS)
        ordered = self.residual is None or self.activation_after_residual or self.activation is Activation.NONE
        kinds = {self.output.dtype} | ({self.residual.dtype} if self.residual is not None else set())
        return clamps and ordered and kinds == {torch.uint8}

    def fill(self, arguments: EpilogueArguments, step: str) -> None:
        """Write everything but addresses and strides."""
        arguments.output_type = operand(self.output, step, "output", FLOATS_AND_CODES)
        grid = grid_of(self.output_grid, self.output.dtype, step, "output_grid")
        number, low, high = in_numbers(self.activation)
        arguments.activation, arguments.low, arguments.high = number, low, high
        arguments.activate_last = int(self.activation_after_residual)
        arguments.inverse, arguments.shift = inverse_and_shift(grid)
        if self.residual is None:
            check(
                self.residual_grid is None, step, "residual_grid", repr(self.residual_grid), "None without a residual"
            )
            return
        arguments.residual_type = operand(self.residual, step, "residual", FLOATS_AND_CODES)
        grid = grid_of(self.residual_grid, self.residual.dtype, step, "residual_grid")
        arguments.residual_scale, arguments.residual_zero = grid.scale, grid.zero_point


def _clamped_codes(low: float, high: float, grid: Grid) -> tuple[int, int]:
    """Return the codes of the limits: rounding keeps order, so codes can be clamped instead of values."""
    inverse = inverse_and_shift(grid)[0]

    def code(value: float) -> int:
        if math.isinf(value):
            return TOP if value > 0 else 0
        return min(max(round(value * inverse + grid.zero_point), 0), TOP)

    return code(low), code(high)


class Constants:
    """Scales, biases and offsets of output channels, padded as the kernels read them."""

    __slots__ = ("bias", "column_sums", "dynamic", "offset", "scale", "weight_scale")

    def __init__(
        self,
        weight: PackedWeight,
        weight_scale: torch.Tensor,
        bias: torch.Tensor | None,
        input_grid: Grid | None,
        dynamic: torch.Tensor | None,
        step: str,
    ) -> None:
        scales = vector(weight_scale, step, "weight_scale", weight.rows)
        self.bias = weight.spread(torch.zeros(weight.rows) if bias is None else vector(bias, step, "bias", weight.rows))
        self.column_sums = weight.spread(weight.column_sums)
        self.weight_scale = weight.spread(scales)
        self.dynamic = dynamic
        if dynamic is None:
            grid = grid_of(input_grid, torch.uint8, step, "input_grid")
            self.scale = self.weight_scale * grid.scale
            self.offset = self.column_sums * -grid.zero_point
        else:
            operand(dynamic, step, "dynamic", (torch.float32,))
            check(
                dynamic.shape == (2,) and dynamic.is_contiguous(), step, "dynamic", tuple(dynamic.shape), "two numbers"
            )
            check(input_grid is None, step, "input_grid", repr(input_grid), "None, as `dynamic` gives the grid")
            self.scale = torch.zeros_like(self.weight_scale)
            self.offset = torch.zeros_like(self.column_sums)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, to keep."""
        return self.bias, self.column_sums, self.weight_scale, self.scale, self.offset

    def fold(self, finish: Finish, arguments: EpilogueArguments, products: int) -> None:
        """Let scale and bias lead to codes where the output is uint8 and no other arithmetic comes between.

        Args:
            finish: What comes after the sum.
            arguments: Its fields are written.
            products: How many products a sum has: it must stay in int32 after scaling, for it is not clamped before.
        """
        if self.dynamic is not None or not finish.can_fold or finish.output_grid is None:
            return
        grid = finish.output_grid
        inverse = inverse_and_shift(grid)[0]
        scale = self.scale * inverse
        bias = self.bias * inverse + grid.zero_point
        if finish.residual_grid is not None:
            arguments.residual_factor = factor = finish.residual_grid.scale * inverse
            bias -= finish.residual_grid.zero_point * factor
        greatest = float((scale.abs() * (GREATEST_PRODUCT * products) + bias.abs()).max())
        if not greatest + TOP * abs(arguments.residual_factor) < OVERFLOW:
            return
        arguments.folded, arguments.code_low, arguments.code_high = 1, 0, TOP
        if finish.activation in GELUS:
            self.scale, self.bias = self.scale * PIECES_PER_UNIT, self.bias * PIECES_PER_UNIT
            arguments.inverse, arguments.shift = inverse / PIECES_PER_UNIT, grid.zero_point
            return
        self.scale, self.bias = scale, bias
        _, low, high = in_numbers(finish.activation)
        arguments.code_low, arguments.code_high = _clamped_codes(low, high, grid)

    def fill(self, arguments: EpilogueArguments) -> None:
        """Write the addresses."""
        arguments.scale = self.scale.data_ptr()
        arguments.bias = self.bias.data_ptr()
        arguments.offset = self.offset.data_ptr()
