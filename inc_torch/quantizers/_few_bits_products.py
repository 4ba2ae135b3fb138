"""The ways to multiply with codes of few bits without gradients, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Final, final

import torch

from inc_torch.quantizers._float_codes import float_values
from inc_torch.quantizers._paths import allows
from inc_torch.quantizers._spec import WeightOnlyScheme
from inc_torch.quantizers._torch_products import MOST_ROWS, TorchProduct, torch_product
from inc_torch.quantizers._weight_only import unpack

if TYPE_CHECKING:
    from inc_torch.kernels import FewBitsWeight

__all__ = ["FewBitsProducts"]

_CODES: Final = 16
"""Of 4 bits."""
_FEW_ROWS: Final = 16
"""Up to so many rows of inputs weights are unpacked as they are multiplied; for more it pays to unpack them before."""
_FEW_NARROW_ROWS: Final = 8
"""The same for floats of 16 bits, which processors multiply faster."""


@final
class FewBitsProducts:
    """Products with a packed weight: by compiled code, else by torch's operators where they are fast.

    Args:
        source: The codes that all of it follows from.
        buffers: Returns codes, scales and what else a layer has in our own layout, which are not copied.
        scheme: What the codes are of.
        inputs: How many there are.

    Attributes:
        source: As given.
    """

    def __init__(
        self,
        source: torch.Tensor,
        buffers: Callable[[], Mapping[str, torch.Tensor | None]],
        scheme: WeightOnlyScheme,
        inputs: int,
    ) -> None:
        self.source = source
        self._buffers, self._scheme, self._inputs = buffers, scheme, inputs
        self._native_of: tuple[tuple[int, ...], TorchProduct | None] | None = None

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
        if dtype != torch.bfloat16 or not 0 < count <= MOST_ROWS or not allows("torch"):
            return None
        native = self._current_native()
        if native is None:
            return None
        product = native.times(rows.to(dtype).contiguous())
        bias = self._buffers()["bias"]
        return product if bias is None else product + bias.to(dtype)

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
        buffers, scheme = self._buffers(), self._scheme
        words, scales = _there(buffers, "qweight"), _there(buffers, "scales")
        return kernels.FewBitsWeight(
            words,
            scales,
            buffers["qzeros"],
            inputs=self._inputs,
            bits=scheme.bits,
            group=self._inputs if scheme.group_size == -1 else scheme.group_size,
            group_of=buffers["g_idx"],
            bias=None if (bias := buffers["bias"]) is None else bias.to(torch.float32),
            table=None if scheme.codes == "int" else float_values(torch.arange(_CODES), scheme.codes),
        )

    def _current_native(self) -> TorchProduct | None:
        """Torch's product, which is of a copy of the codes, packed again after they were written to."""
        tensors = [tensor for tensor in self._buffers().values() if tensor is not None]
        versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
        if self._native_of is None or self._native_of[0] != versions:
            self._native_of = versions, self._pack_for_torch()
        return self._native_of[1]

    def _pack_for_torch(self) -> TorchProduct | None:
        buffers, bits = self._buffers(), self._scheme.bits
        if buffers["g_idx"] is not None or self._scheme.codes != "int":
            return None
        words, scales, zeros = _there(buffers, "qweight"), _there(buffers, "scales"), buffers["qzeros"]
        codes = unpack(words, bits, self._inputs, signed=zeros is None)
        zeros = None if zeros is None else unpack(zeros, bits, scales.shape[1], signed=False)
        return torch_product(codes, scales, zeros, self._scheme)


def _there(buffers: Mapping[str, torch.Tensor | None], name: str) -> torch.Tensor:
    found = buffers[name]
    if found is None:
        message = f"A layer without {name} holds no weight."
        raise ValueError(message)
    return found
