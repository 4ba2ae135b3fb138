"""Products of int8 codes through `torch._int_mm`, which uses the int8 units of GPUs."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F

from inc_torch.quantizers._codes import InputGrid

__all__ = ["multiply_codes", "takes_codes"]

_SHIFT: Final = 128
"""Codes of inputs begin at 0; those of `torch._int_mm` are signed."""
_FEWEST_ROWS: Final = 17
_MULTIPLE: Final = 8
"""What GPUs ask of matrices."""
_CAPABILITY: Final = (7, 5)
"""The first GPUs of NVIDIA with int8 units."""


def takes_codes(device: torch.device) -> bool:
    """Whether products of codes are fast on this device.

    Example:
        >>> takes_codes(torch.device("cpu"))
        False
    """
    return (
        device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= _CAPABILITY
    )


def multiply_codes(
    codes: torch.Tensor,
    grid: InputGrid,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """``y = x @ W.T + b`` of the values that codes stand for, float32 [..., out].

    Sums of codes are exact; only they are multiplied with scales.

    Args:
        codes: uint8 [..., in], on ``grid``.
        grid: Scale and zero point of the input.
        weight: int8 [out, in].
        weight_scale: float32 [out].
        bias: float32 [out].

    Example:
        >>> grid = InputGrid(0.5, 2, 255)
        >>> codes, weight = torch.tensor([[2, 6]], dtype=torch.uint8), torch.tensor([[1, 3]], dtype=torch.int8)
        >>> multiply_codes(codes, grid, weight, torch.tensor([0.1]), None)  # 0.5 * 0.1 * (0 * 1 + 4 * 3)
        tensor([[0.6000]])
    """
    outputs, inputs = weight.shape
    rows = (codes.reshape(-1, inputs).to(torch.int16) - _SHIFT).to(torch.int8)
    count = len(rows)
    more_inputs, more_outputs = -inputs % _MULTIPLE, -outputs % _MULTIPLE
    rows = F.pad(rows, (0, more_inputs, 0, max(0, _FEWEST_ROWS - count)))
    sums = torch._int_mm(rows, F.pad(weight, (0, more_inputs, 0, more_outputs)).t())[:count, :outputs]
    # The zero of the input's grid was shifted too; padded inputs met weights of 0.
    sums = sums - (grid.zero_point - _SHIFT) * weight.sum(1, dtype=torch.int32)
    products = sums.to(torch.float32) * (weight_scale * grid.scale)
    products = products if bias is None else products + bias
    return products.view(*codes.shape[:-1], outputs)
