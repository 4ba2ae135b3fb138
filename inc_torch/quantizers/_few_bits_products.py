"""The ways to multiply with codes of few bits without gradients, on the CPU."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple, final

import torch

from inc_torch.quantizers._paths import allows
from inc_torch.quantizers._spec import WeightOnlyScheme
from inc_torch.quantizers._torch_products import MOST_ROWS, TorchProduct, torch_product
from inc_torch.quantizers._weight_only import unpack

if TYPE_CHECKING:
    from inc_torch.kernels import FewBitsWeight

__all__ = ["FewBitsProducts", "PackedWeight"]

_FEW_ROWS: Final = 16
"""Up to so many rows of inputs weights are unpacked as they are multiplied; for more it pays to unpack them before."""
_FEW_NARROW_ROWS: Final = 8
"""The same for floats of 16 bits, which processors multiply faster."""


@final
class PackedWeight(NamedTuple):
    """What a `WeightOnlyLinear` holds, under the names of its buffers."""

    qweight: torch.Tensor
    scales: torch.Tensor
    qzeros: torch.Tensor | None
    bias: torch.Tensor | None
    g_idx: torch.Tensor | None


@final
class FewBitsProducts:
    """Products with a packed weight: by compiled code, else by torch's operators where they are fast.

    Args:
        packed: The codes, which are not copied.
        scheme: What they are of.
        inputs: How many there are.
    """

    def __init__(self, packed: PackedWeight, scheme: WeightOnlyScheme, inputs: int) -> None:
        self.source = packed.qweight
        self._packed, self._scheme, self._inputs = packed, scheme, inputs

    def times(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """The output of the layer for few rows of inputs; None where floats are faster.

        Args:
            rows: [rows, in], any floating dtype.
            dtype: Of the output.
        """
        count = len(rows)
        if allows("inc_torch") and self._compiled is not None:
            if not 0 < count <= (_FEW_ROWS if dtype == torch.float32 else _FEW_NARROW_ROWS):
                return None
            return self._compiled.times(rows.to(torch.float32).contiguous()).to(dtype)
        if dtype != torch.bfloat16 or not 0 < count <= MOST_ROWS or not allows("torch") or self._native is None:
            return None
        product = self._native.times(rows.to(dtype).contiguous())
        return product if self._packed.bias is None else product + self._packed.bias.to(dtype)

    def floats(self, outputs: slice, dtype: torch.dtype) -> torch.Tensor | None:
        """The weights of some outputs, unpacked by compiled code; None where there is none."""
        if not allows("inc_torch") or self._compiled is None:
            return None
        made = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        return self._compiled.expanded(made, outputs.start, outputs.stop).to(dtype)

    @cached_property
    def _compiled(self) -> FewBitsWeight | None:
        from inc_torch import kernels  # here, as ``import inc_torch`` does without

        if not kernels.available():
            return None
        packed, scheme = self._packed, self._scheme
        return kernels.FewBitsWeight(
            packed.qweight,
            packed.scales,
            packed.qzeros,
            inputs=self._inputs,
            bits=scheme.bits,
            group=self._inputs if scheme.group_size == -1 else scheme.group_size,
            group_of=packed.g_idx,
            bias=packed.bias,
        )

    @cached_property
    def _native(self) -> TorchProduct | None:
        packed, bits = self._packed, self._scheme.bits
        if packed.g_idx is not None:
            return None
        codes = unpack(packed.qweight, bits, self._inputs, signed=packed.qzeros is None)
        zeros = None if packed.qzeros is None else unpack(packed.qzeros, bits, packed.scales.shape[1], signed=False)
        return torch_product(codes, packed.scales, zeros, self._scheme)
