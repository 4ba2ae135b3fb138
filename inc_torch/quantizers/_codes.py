"""The arithmetic of int8: one place for fake-quant, conversion and int8 inference, so that they agree.

Inputs are uint8 codes of a grid that contains zero:

    code  = clamp(round(x / scale) + zero_point, 0, top)
    x'    = (code - zero_point) * scale

Weights are int8 codes in [-128, 127] around zero, so the float 0 of a pruned weight is the code 0:

    scale = max|w| / 127.5
    code  = min(round(w / scale), 127)

Nothing is off by more than half a scale, the greatest weight included. Of fewer bits the same with 7.5, 7 and so on.

Rounding is to the nearest, ties to even. All of it is computed in float32, whatever the dtype of the tensor.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch

from inc_torch.quantizers._observers import Levels
from inc_torch.quantizers._spec import QuantScheme

__all__ = [
    "InputGrid",
    "decode",
    "dynamic_grid",
    "encode",
    "input_grid",
    "quantize_weight",
    "snap",
    "snap_weight",
    "usable_scale",
]

SMALLEST_SCALE = 1e-30
"""Below it a scale or its inverse leaves the range of float32; what is that small is zero."""

_MANTISSA = 2.0**23
"""From here to 2**24 float32 values lie 1 apart: adding it rounds, and leaves the integer in the low bits."""

_PIECE = 2**18
"""Values that `encode` takes at once: 1 MiB of float32, which the cache of a core holds."""


def usable_scale(scale: float) -> float:
    """Round to float32, as scales are stored, and replace what cannot be divided by with 1.

    Example:
        >>> usable_scale(0.5), usable_scale(0.0)
        (0.5, 1.0)
    """
    rounded: float = struct.unpack("f", struct.pack("f", scale))[0]
    return rounded if rounded >= SMALLEST_SCALE else 1.0


class InputGrid(NamedTuple):
    """The values that a quantized input can take.

    Attributes:
        scale: Distance of neighbours, a float32 number above 0.
        zero_point: Code of the value 0, in [0, top].
        top: Greatest code: 255, or less if the scheme takes fewer bits.
    """

    scale: float
    zero_point: int
    top: int

    @property
    def limits(self) -> tuple[float, float]:
        """The open interval of values that are rounded, not clipped: half a step beyond the outermost codes."""
        return (-self.zero_point - 0.5) * self.scale, (self.top - self.zero_point + 0.5) * self.scale

    @property
    def shift(self) -> torch.Tensor:
        """What `encode` adds, as the scalar tensor that it adds it from."""
        return torch.tensor(_MANTISSA + self.zero_point)


def input_grid(low: float, high: float, scheme: QuantScheme) -> InputGrid:
    """Fit the grid to the range [low, high], which contains 0.

    Example:
        >>> input_grid(-1.0, 254.0, QuantScheme())
        InputGrid(scale=1.0, zero_point=1, top=255)
        >>> input_grid(-1.0, 255.0, QuantScheme(symmetric_input=True))
        InputGrid(scale=2.0, zero_point=128, top=255)
    """
    top = scheme.top
    if scheme.symmetric_input:
        return InputGrid(usable_scale(max(-low, high) / (top / 2)), Levels(0, top, symmetric=True).zero_point, top)
    scale = usable_scale(high / top - low / top)
    return InputGrid(scale, min(max(round(-low / scale), 0), top), top)


def dynamic_grid(values: torch.Tensor, scheme: QuantScheme) -> InputGrid | None:
    """Fit the grid to the values themselves; waits for the device.

    Args:
        values: Any floating dtype and rank.
        scheme: How inputs are quantized.

    Returns:
        None if there is no value, or one that is not finite: such a tensor has no grid.

    Example:
        >>> dynamic_grid(torch.tensor([-1.0, 254.0]), QuantScheme(dynamic=True))
        InputGrid(scale=1.0, zero_point=1, top=255)
    """
    if values.numel() == 0 or values.is_meta:
        return None
    least, greatest = torch.stack(torch.aminmax(values.detach())).tolist()
    if not (math.isfinite(least) and math.isfinite(greatest)):
        return None
    return input_grid(min(least, 0.0), max(greatest, 0.0), scheme)


def encode(values: torch.Tensor, grid: InputGrid, shift: torch.Tensor) -> torch.Tensor:
    """Quantize to uint8 codes, shaped and laid out like ``values``.

    Args:
        values: Any floating dtype; never written to.
        grid: The codes' meaning.
        shift: ``grid.shift``, made once by who encodes often.

    Example:
        >>> grid = InputGrid(scale=0.5, zero_point=10, top=255)
        >>> encode(torch.tensor([0.0, 1.0, -100.0, 0.3]), grid, grid.shift)
        tensor([10, 12,  0, 11], dtype=torch.uint8)
    """
    values = values.detach()
    if values.numel() > _PIECE and not torch.compiler.is_compiling():
        return _encode_in_pieces(values, grid, shift)
    return _shifted(values.to(torch.float32), grid, shift).view(torch.int32).to(torch.uint8)


def _encode_in_pieces(values: torch.Tensor, grid: InputGrid, shift: torch.Tensor) -> torch.Tensor:
    """Encode through one small buffer: a float copy of a big tensor costs more in page faults than the arithmetic."""
    codes = torch.empty_like(values, dtype=torch.uint8)
    if codes.stride() != values.stride():  # broadcast or cut out: there is no flat view
        values, codes = values.contiguous(), codes.contiguous()
    count = values.numel()
    flat_values, flat_codes = (tensor.as_strided((count,), (1,)) for tensor in (values, codes))
    buffer = torch.empty(_PIECE, device=values.device)
    for piece, target in zip(torch.split(flat_values, _PIECE), torch.split(flat_codes, _PIECE), strict=True):
        scratch = buffer[: len(piece)]
        floats = piece if piece.dtype == torch.float32 else scratch.copy_(piece)
        target.copy_(_shifted(floats, grid, shift, out=scratch).view(torch.int32))
    return codes


def _shifted(
    values: torch.Tensor, grid: InputGrid, shift: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``2**23 + code`` in float32, in two passes over memory instead of four (divide, round, add, clamp)."""
    return torch.add(shift, values, alpha=1.0 / grid.scale, out=out).clamp_(_MANTISSA, _MANTISSA + grid.top)


def decode(codes: torch.Tensor, grid: InputGrid) -> torch.Tensor:
    """Return the float32 values that uint8 codes stand for."""
    return codes.to(torch.float32).sub_(grid.zero_point).mul_(grid.scale)


def snap(values: torch.Tensor, grid: InputGrid) -> torch.Tensor:
    """Move every value to the grid: ``decode(encode(values))`` without codes, in the dtype of ``values``.

    The value 0 stays 0. Not differentiable; `fake_quantize_input` is.
    """
    shift = grid.shift
    snapped = _shifted(values.detach().to(torch.float32), grid, shift).sub_(shift).mul_(grid.scale)
    return snapped.to(values.dtype)


def weight_magnitude(weight: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Greatest magnitude of each slice along ``axis``, of the whole tensor if None; kept dimensions."""
    others = [dimension for dimension in range(weight.dim()) if dimension != axis]
    return torch.maximum(weight.amax(others, keepdim=True), weight.amin(others, keepdim=True).neg_())


def weight_scale(magnitude: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """The scales, float32 above 0, that resolve weights up to ``magnitude``."""
    scale = magnitude.to(torch.float32) / (2 ** (bits - 1) - 0.5)
    return torch.where(scale >= SMALLEST_SCALE, scale, 1.0)


def weight_codes(values: torch.Tensor, scale: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """The codes of float32 ``values``, still in float32."""
    top = 2 ** (bits - 1)
    return (values / scale).round_().clamp_(-top, top - 1)


def quantize_weight(weight: torch.Tensor, axis: int | None, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize symmetrically to int8.

    Args:
        weight: Any floating dtype, any rank.
        axis: The axis of output channels, which have a scale each; None gives all of them one.
        bits: Width of the codes, in the low bits of int8.

    Returns:
        Codes (int8 in [-128, 127], shaped like ``weight``) and scales (float32, kept dimensions).

    Example:
        >>> quantize_weight(torch.tensor([[127.5, 0.0], [63.75, -127.5]]), axis=0)[0]
        tensor([[ 127,    0],
                [  64, -128]], dtype=torch.int8)
    """
    values = weight.detach().to(torch.float32)
    scale = weight_scale(weight_magnitude(values, axis), bits)
    return weight_codes(values, scale, bits).to(torch.int8), scale


def snap_weight(weight: torch.Tensor, axis: int | None, bits: int = 8) -> torch.Tensor:
    """Move every weight to its grid: codes times scales, in the dtype of ``weight``."""
    values = weight.detach().to(torch.float32)
    scale = weight_scale(weight_magnitude(values, axis), bits)
    return weight_codes(values, scale, bits).mul_(scale).to(weight.dtype)
