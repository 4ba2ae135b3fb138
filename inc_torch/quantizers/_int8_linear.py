"""Linear layers on int8 codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.nn.functional as F

from inc_torch.quantizers._codes import InputGrid, decode, dynamic_grid, encode
from inc_torch.quantizers._int8_module import (
    NO_POST_OPERATION,
    PLAIN_OUTPUT,
    WRITTEN_DTYPES,
    Int8Operator,
    Plan,
    fits_kernel,
    output_dtype,
)
from inc_torch.quantizers._int_mm import multiply_codes, takes_codes
from inc_torch.quantizers._paths import allows, is_chosen

__all__ = ["Int8DynamicLinear", "Int8Linear"]


class _Int8Linear(Int8Operator):
    """``y = x @ W.T + b`` on int8 codes of both; the input may have any rank and floating dtype."""

    replaces = "linear"
    operator_name = "qlinear_pointwise"

    def _multiplied(
        self,
        input: torch.Tensor,  # noqa: A002  as in forward
        dtype: torch.dtype,
        plan: Plan,
        grid: InputGrid,
        shift: torch.Tensor,
    ) -> torch.Tensor:
        if plan.packed is None:
            plan.packed = torch.ops.onednn.qlinear_prepack(plan.weight, None)
        operator: Callable[..., torch.Tensor] = plan.operator  # type: ignore[assignment]  # see _runs_kernel
        return operator(
            encode(input, grid, shift),
            grid.scale,
            grid.zero_point,
            plan.packed,
            plan.weight_scale,
            plan.weight_zero_point,
            plan.bias,
            *PLAIN_OUTPUT,
            WRITTEN_DTYPES.get(dtype, dtype),
            *NO_POST_OPERATION,
        ).to(dtype)

    def _runs_kernel(self, input: torch.Tensor, dtype: torch.dtype, plan: Plan) -> bool:  # noqa: A002  as in forward
        return plan.operator is not None and fits_kernel(input, dtype) and input.shape[-1:] == plan.source.shape[1:]

    def _multiplies_integers(self, input: torch.Tensor, plan: Plan) -> bool:  # noqa: A002  as in forward
        """Whether the device has a product of integers, and no kernel of the CPU runs."""
        wanted = is_chosen("int_mm") or (allows("int_mm") and takes_codes(input.device))
        fits = input.numel() > 0 and input.shape[-1:] == plan.source.shape[1:]
        return wanted and fits and self._arithmetic is None

    def _float_operation(self, values: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:  # noqa: ARG002
        return F.linear(values, weight, self.bias)


@final
class Int8Linear(_Int8Linear):
    """`torch.nn.Linear` on int8 codes, with an input range that was observed before."""

    kind = "linear"

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Quantize the input, multiply, and return the dtype of the input, or that of autocast."""
        plan = self._current_plan()
        dtype = output_dtype(input)
        values = input if plan.factor is None else self._smoothed(input)
        if self._runs_kernel(values, dtype, plan):
            return self._multiplied(values, dtype, plan, plan.grid, plan.shift)
        if self._multiplies_integers(values, plan):
            codes = encode(values, plan.grid, plan.shift)
            return multiply_codes(codes, plan.grid, plan.weight, plan.weight_scale, plan.bias).to(dtype)
        return self._in_float(values, dtype)


@final
class Int8DynamicLinear(_Int8Linear):
    """`torch.nn.Linear` on int8 codes, with the range of each input taken from the input itself.

    What comes out for one sample depends on what else is in its batch, as the range is that of the whole tensor.
    """

    kind = "dynamic_linear"

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Find the range, quantize the input, multiply, and return the dtype of the input, or that of autocast."""
        plan = self._current_plan()
        dtype = output_dtype(input)
        values = input if plan.factor is None else self._smoothed(input)
        runs_kernel = self._runs_kernel(values, dtype, plan)
        grid = dynamic_grid(values, plan.scheme) if runs_kernel or self._multiplies_integers(values, plan) else None
        if grid is None:
            return self._in_float(values, dtype)
        if runs_kernel:
            return self._multiplied(values, dtype, plan, grid, grid.shift)
        codes = encode(values, grid, grid.shift)
        return multiply_codes(codes, grid, plan.weight, plan.weight_scale, plan.bias).to(dtype)

    def _fixed_grid(self, top: int) -> InputGrid:
        return InputGrid(1.0, 0, top)

    def _rounded(self, input: torch.Tensor, plan: Plan) -> torch.Tensor:  # noqa: A002  as in forward
        if self._arithmetic is not None:
            return self._arithmetic.rounded_by_itself(input, plan.scheme)
        grid = dynamic_grid(input, plan.scheme)
        return input.to(torch.float32) if grid is None else decode(encode(input, grid, grid.shift), grid)
