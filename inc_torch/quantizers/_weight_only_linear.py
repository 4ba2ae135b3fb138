"""Linear layers whose weights are codes of a few bits, packed into words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self, final

import torch
import torch.nn.functional as F

from inc_torch.core.observed import is_observed
from inc_torch.quantizers._fake_quant_modules import input_channels
from inc_torch.quantizers._few_bits_products import FewBitsProducts
from inc_torch.quantizers._float_codes import float_values
from inc_torch.quantizers._int8_module import Int8Module, output_dtype
from inc_torch.quantizers._scheme_names import named_weight_only, weight_only_name
from inc_torch.quantizers._spec import WeightOnlyScheme
from inc_torch.quantizers._weight_only import RoundedWeight, decoded
from inc_torch.quantizers._word_layout import OWN, WordLayout

if TYPE_CHECKING:
    from inc_torch.quantizers._arithmetic import Arithmetic

__all__ = ["WeightOnlyLinear", "empty_buffers", "group_of_each", "packed_buffers"]

_BYTE: Final = 8
_PIECE: Final = 2**18
"""Weights that a forward on the CPU has in float at once: 1 MiB of float32, which the cache of a core holds."""
_ACCELERATOR_PIECE: Final = 2**24
"""The same elsewhere, where each operation takes time to be launched."""
_PRODUCTS: Final = "_products"
"""Where a layer keeps what is derived from its codes, which is never saved or copied."""


@final
class WeightOnlyLinear(Int8Module):
    """``y = x @ W.T + b`` with a weight of a few bits, on inputs of any rank and floating dtype.

    Its buffers, where a word holds ``32 // bits`` codes and ``groups`` is how many scales a row has:

        qweight  int32    [out, words]
        scales   float32  [out, groups]
        qzeros   int32    [out, words of zero points], or None if the scheme is symmetric
        bias     float32  [out], or None
        g_idx    int32    [in], the group of each input, or None if neighbours share one
        input_factor  float32  [in], what inputs are multiplied with first, or None

    So it is after quantization; another ``layout`` has the same things elsewhere, see `WordLayout`. In a forward the
    weight is unpacked, in pieces if it is large, and never kept. Where `inc_torch.kernels` can be used compiled code
    does that, and for few rows of inputs while it multiplies. Gradients reach the input.

    Example:
        >>> from inc_torch.quantizers import QuantSpec, WeightOnlyScheme, quantize_weights
        >>> layer = torch.nn.Linear(64, 8)
        >>> quantize_weights(layer, QuantSpec(WeightOnlyScheme()))[""].scheme
        'w4-g32-sym'
        >>> layer.qweight.shape, layer.scales.shape, layer(torch.ones(2, 3, 64)).shape
        (torch.Size([8, 8]), torch.Size([8, 2]), torch.Size([2, 3, 8]))
    """

    kind = "weight_only_linear"
    replaces = "linear"

    layout: WordLayout = OWN
    _unpacked: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    scales: torch.Tensor
    qzeros: torch.Tensor | None
    bias: torch.Tensor | None
    g_idx: torch.Tensor | None
    input_factor: torch.Tensor | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Multiply with the unpacked weight, in the dtype of the input, or that of autocast."""
        dtype = output_dtype(input) if input.is_floating_point() else self.float_dtype
        if self.input_factor is not None:
            input = input * self.input_factor.to(input.dtype)  # noqa: A001  as above
        bias = None if self.bias is None else self.bias.to(dtype)
        outputs, inputs = self.weight_shape
        products = self._products_for(input)
        if products is not None:
            product = products.times(input.reshape(-1, inputs), dtype)
            if product is not None:
                return product.view(*input.shape[:-1], outputs)
        at_once = max(1, (_PIECE if self.qweight.device.type == "cpu" else _ACCELERATOR_PIECE) // inputs)
        is_whole = at_once >= outputs or not (self.layout.in_pieces or products)
        if is_whole or torch.compiler.is_compiling():  # which fuses unpacking by itself
            return F.linear(input, self._floats(slice(0, outputs), dtype, products), bias)
        pieces = [
            F.linear(input, self._floats(part, dtype, products), None if bias is None else bias[part])
            for part in (slice(first, min(first + at_once, outputs)) for first in range(0, outputs, at_once))
        ]
        return torch.cat(pieces, dim=-1)

    def _products_for(self, input: torch.Tensor) -> FewBitsProducts | None:  # noqa: A002  as above
        """Fast products; None where gradients are wanted, or somebody has to see torch's operators on floats."""
        is_plain = (
            type(input) is torch.Tensor and input.is_floating_point() and input.shape[-1:] == self.weight_shape[1:]
        )
        on_cpu = input.device.type == "cpu" == self.qweight.device.type
        needs_gradient = torch.is_grad_enabled() and input.requires_grad
        if not (is_plain and on_cpu) or needs_gradient or self._arithmetic is not None or is_observed():
            return None
        products: FewBitsProducts | None = self.__dict__.get(_PRODUCTS)
        if products is None or products.source is not self.qweight:
            products = self.__dict__[_PRODUCTS] = FewBitsProducts(
                self.qweight, self._own_buffers, self._scheme, self.weight_shape[1]
            )
        return products

    def _own_buffers(self) -> Mapping[str, torch.Tensor | None]:
        """What the layer holds, in our own layout."""
        if self.layout == OWN:
            return self._buffers
        return OWN.packed(self.rounded(), self._scheme, self.bias, self.g_idx)

    def _floats(self, part: slice, dtype: torch.dtype, products: FewBitsProducts | None) -> torch.Tensor:
        """The weights of some outputs."""
        values = None if products is None else products.floats(part, dtype)
        return self._float_rows(part).to(dtype) if values is None else values

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self.__dict__.pop(_PRODUCTS, None)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  as in the base
        self.__dict__.pop(_PRODUCTS, None)
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != _PRODUCTS}

    @property
    def weight_shape(self) -> torch.Size:
        """Outputs and inputs."""
        return torch.Size((self.layout.outputs(self._buffers), input_channels(self)))

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return self._scheme.bits

    @property
    def kernel(self) -> str:
        from inc_torch import kernels  # as above

        return "inc_torch" if kernels.available() else f"float: {kernels.reason()}"

    def compute_with(self, arithmetic: Arithmetic | None) -> None:
        """As in the base; codes are unpacked now, as who traces the module may not know the operations for that."""
        super().compute_with(arithmetic)
        self.__dict__["_unpacked"] = None
        if arithmetic is not None:
            group_of = self.g_idx if self.g_idx is not None else group_of_each(self._scheme, self.weight_shape[1])
            narrow = torch.int8 if self.code_bits < _BYTE else torch.int16
            scales = self._rounded(slice(None)).scales
            self.__dict__["_unpacked"] = self.signed_codes().to(narrow), scales, group_of.to(self.qweight.device)

    def signed_codes(self) -> torch.Tensor:
        """The codes less their zero points, int32 [out, in]: 0 where the weight is 0, also with codes from a table."""
        codes, scales, zero_points = self._rounded(slice(None))
        if zero_points is None:
            return codes
        return self._decoded(RoundedWeight(codes, torch.ones_like(scales), zero_points)).to(torch.int32)

    def lay_out(self, layout: WordLayout) -> None:
        """Hold the same codes in another layout, in place; scales and bias are rounded to its dtype."""
        if layout != self.layout:
            self.hold(self.rounded(), self._scheme, self.bias, self.g_idx, layout)

    def hold(
        self,
        rounded: RoundedWeight,
        scheme: WeightOnlyScheme,
        bias: torch.Tensor | None,
        group_of: torch.Tensor | None = None,
        layout: WordLayout = OWN,
    ) -> None:
        """Take a weight of the same shape in the place of the one that is there; see `packed_buffers`."""
        self._buffers.update(layout.packed(rounded, scheme, bias, group_of))
        self.__dict__.update(scheme=weight_only_name(scheme), layout=layout)

    def rounded(self) -> RoundedWeight:
        """Codes, scales and zero points as rounding gave them, whatever the layout: symmetric codes lie around 0."""
        found = self._rounded(slice(None))
        return RoundedWeight(self.signed_codes(), found.scales, None) if self._scheme.symmetric else found

    @property
    def _scheme(self) -> WeightOnlyScheme:
        return named_weight_only(self.scheme)

    def _float_weight(self) -> torch.Tensor:
        return self._float_rows(slice(None))

    def _float_rows(self, rows: slice) -> torch.Tensor:
        if self._arithmetic is not None and self._unpacked is not None:
            codes, scales, group_of = self._unpacked
            return self._arithmetic.grouped_weight(self._numbers(codes[rows]), scales[rows], group_of)
        return self._decoded(self._rounded(rows))

    def _decoded(self, rounded: RoundedWeight) -> torch.Tensor:
        codes, scales, zero_points = rounded
        if self.g_idx is None:
            return decoded(codes, scales, zero_points, self._scheme.group_size, self._scheme.codes)
        values = self._numbers(codes).to(torch.float32)
        if zero_points is not None:
            values -= zero_points[:, self.g_idx]
        return values * scales[:, self.g_idx]

    def _numbers(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes are to be multiplied by their scales as: themselves, or their numbers in a table."""
        kind = self._scheme.codes
        return codes if kind == "int" else float_values(codes, kind)

    def _rounded(self, rows: slice) -> RoundedWeight:
        return self.layout.unpacked(self._buffers, self._scheme, self.weight_shape[1], rows)


def group_of_each(scheme: WeightOnlyScheme, inputs: int) -> torch.Tensor:
    """The group of each of so many inputs where neighbours share one, int64 ``[in]``.

    Example:
        >>> group_of_each(WeightOnlyScheme(group_size=2), 5).tolist()
        [0, 0, 1, 1, 2]
    """
    places = torch.arange(inputs)
    return torch.zeros_like(places) if scheme.group_size == -1 else places // scheme.group_size


def packed_buffers(
    rounded: RoundedWeight,
    scheme: WeightOnlyScheme,
    bias: torch.Tensor | None,
    group_of: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
) -> dict[str, torch.Tensor | None]:
    """The buffers of a `WeightOnlyLinear` for `Int8Module.adopt`; without ``group_of`` neighbours share a group."""
    return {**OWN.packed(rounded, scheme, bias, group_of), "input_factor": factor}


def empty_buffers(
    weight: torch.Tensor,
    scheme_name: str,
    *,
    bias: bool,
    reordered: bool = False,
    smoothed: bool = False,
    layout: WordLayout = OWN,
) -> dict[str, torch.Tensor | None]:
    """Buffers of the right shapes, ready for ``load_state_dict``.

    Args:
        weight: [out, in], on the device that the buffers are made on; its values do not matter.
        scheme_name: A scheme of weights alone.
        bias: Whether there is one.
        reordered: Whether ``g_idx`` says which group an input belongs to.
        smoothed: Whether inputs are multiplied with a factor.
        layout: Of the buffers.
    """
    outputs, inputs = weight.shape
    scheme, device = named_weight_only(scheme_name), weight.device
    buffers = layout.empty(scheme, (outputs, inputs), device, bias=bias, reordered=reordered)
    return {**buffers, "input_factor": torch.ones(inputs, device=device) if smoothed else None}
