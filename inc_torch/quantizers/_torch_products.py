"""Torch's own products with weights of few bits, for CPUs that the compiled kernels are not for.

They are fast for bfloat16 inputs of few rows alone: in float32 they take longer than unpacking the weight (measured:
15 times as long as a float32 product), and their time grows with the rows.
"""

from __future__ import annotations

from typing import Final, final

import torch

from inc_torch.quantizers._spec import WeightOnlyScheme

__all__ = ["TorchProduct", "torch_product"]

_aten = torch.ops.aten
_FOUR, _EIGHT = 4, 8
_GROUPS: Final = (256, 128, 64, 32)
"""Group sizes that torch knows."""
_OUTPUTS: Final = 16
"""Outputs come in so many."""
_INPUTS: Final = 32
"""So do inputs of 8 bits."""
_MIDDLE: Final = 8
"""What torch subtracts from codes."""
MOST_ROWS: Final = 4
"""For more rows torch's own product with unpacked weights is faster."""


@final
class TorchProduct:
    """``input @ weight.T`` by one of torch's operators, bfloat16 [rows, out].

    Args:
        operator: Takes the input and ``operands``.
        operands: What it needs of the weight.
    """

    def __init__(self, operator: torch._ops.OpOverload, *operands: torch.Tensor | int) -> None:
        self._operator, self._operands = operator, operands

    def times(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """The product, without a bias.

        Args:
            input: bfloat16 [rows, in].
        """
        product: torch.Tensor = self._operator(input, *self._operands)
        return product


def torch_product(
    codes: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor | None, scheme: WeightOnlyScheme
) -> TorchProduct | None:
    """Pack a weight for torch; None where this build of torch has no operator for it.

    Args:
        codes: [out, in], integers.
        scales: float32 [out, groups].
        zero_points: [out, groups], or None: codes are signed.
        scheme: What they are of.

    Example:
        >>> codes, scales = torch.full((16, 32), 3), torch.full((16, 1), 0.5)
        >>> product = torch_product(codes, scales, None, WeightOnlyScheme(4, 32))
        >>> product is None or product.times(torch.ones(1, 32, dtype=torch.bfloat16))[0, 0].item() == 48.0
        True
    """
    outputs, inputs = codes.shape
    per_row = scheme.group_size == -1 or scheme.group_size >= inputs
    is_plain = per_row and zero_points is None and inputs % _INPUTS == 0  # others end the process
    if scheme.bits == _EIGHT and is_plain and hasattr(_aten, "_weight_int8pack_mm"):
        return TorchProduct(
            _aten._weight_int8pack_mm.default, codes.to(torch.int8), scales.flatten().to(torch.bfloat16)
        )
    wanted = inputs if per_row else scheme.group_size
    group = next((size for size in _GROUPS if wanted % size == 0 and inputs % size == 0), None)
    is_known = hasattr(_aten, "_weight_int4pack_mm_for_cpu") and outputs % _OUTPUTS == 0
    if scheme.bits > _FOUR or group is None or not is_known:
        return None
    zeros = torch.zeros_like(scales) if zero_points is None else zero_points.to(scales)
    shift = _MIDDLE if zero_points is None else _MIDDLE - 2 ** (scheme.bits - 1)  # so that offsets are small
    packed = _aten._convert_weight_to_int4pack_for_cpu.default((codes + shift).to(torch.int32), 1)
    offsets = scales * (_MIDDLE - shift - zeros)  # torch: (code - 8) * scale + offset
    meaning = torch.stack([scales, offsets], dim=-1).repeat_interleave(wanted // group, dim=1)
    meaning = meaning.transpose(0, 1).to(torch.bfloat16).contiguous()
    return TorchProduct(_aten._weight_int4pack_mm_for_cpu.default, packed, group, meaning)
