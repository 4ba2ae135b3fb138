"""The arithmetic of weights of a few bits: rounding to nearest by groups, and codes packed into words.

A weight is a matrix [out, in]. Groups lie along the inputs; the last one of a row may be shorter. In each of them

    symmetric     scale = max|w| / (2**(bits - 1) - 1)                  code = round(w / scale)
    full range    scale = max|w| / 2**(bits - 1), with a sign           code = round(w / scale)
    asymmetric    scale = (high - low) / (2**bits - 1)                  code = round(w / scale) + zero point
                  zero point = round(-low / scale), low <= 0 <= high

    from a table  scale = max|w| / its greatest number                 code of the nearest number to w / scale

Codes are clamped to those that the bits allow. Rounding is to the nearest, ties to even; all of it is computed in
float32, whatever the dtype of the weight. A weight of 0 is given back as 0. Tables are in `_float_codes`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F

from inc_torch.quantizers._codes import SMALLEST_SCALE
from inc_torch.quantizers._float_codes import float_codes, float_values, greatest_value
from inc_torch.quantizers._spec import Codes, WeightOnlyScheme

__all__ = [
    "RoundedWeight",
    "codes_in_word",
    "decoded",
    "pack",
    "round_to_nearest",
    "rounded_values",
    "search_clip",
    "straight_through",
    "unpack",
]

_BYTE: Final = 8

_CLIP_RATIOS: Final = tuple(1.0 - step / 200 for step in range(40))
"""1.0, 0.995 and so on to 0.805."""


class RoundedWeight(NamedTuple):
    """A weight as codes, and what they mean.

    Attributes:
        codes: [out, in], int8 if symmetric or from a table, else uint8.
        scales: [out, groups], float32; below 0 where a full range is turned around.
        zero_points: [out, groups], uint8; None if symmetric.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None


def round_to_nearest(
    weight: torch.Tensor, scheme: WeightOnlyScheme, clip_ratio: float | torch.Tensor = 1.0
) -> RoundedWeight:
    """Round a weight by groups, see the head of this file; ``clip_search`` of the scheme is left to `search_clip`.

    Args:
        weight: [out, in], any floating dtype.
        scheme: How. A group longer than a row is the row.
        clip_ratio: What ranges are multiplied with, in (0, 1]; one for all or one for each output, [out].

    Source: INC 2.6.1, ``weight_only`` with the algorithm RTN; the same codes and scales. A group that is nothing but
    one value above zero is exact with ``full_range`` here.

    Example:
        >>> rounded = round_to_nearest(torch.tensor([[7.0, -3.2, 0.0, 1.0]]), WeightOnlyScheme(group_size=2))
        >>> rounded.codes.tolist(), rounded.scales.tolist()
        ([[7, -3, 0, 7]], [[1.0, 0.1428571492433548]])
    """
    values = _grouped(weight.detach().to(torch.float32), _group_length(scheme.group_size, weight.shape[1]))
    ratio = clip_ratio.view(-1, 1, 1) if isinstance(clip_ratio, torch.Tensor) else clip_ratio
    low, high = (bound * ratio for bound in _bounds(values))
    if scheme.codes != "int":
        scales = _magnitude(low, high) / greatest_value(scheme.codes)
        codes = float_codes(values / scales, scheme.codes)
        return RoundedWeight(_ungrouped(codes, weight.shape[1]), scales.squeeze(-1), None)
    scales, zero_points = _symmetric(low, high, scheme) if scheme.symmetric else _asymmetric(low, high, scheme)
    least, greatest = _code_range(scheme)
    codes = torch.round(values / scales).add_(0 if zero_points is None else zero_points).clamp_(least, greatest)
    dtype = torch.int8 if scheme.symmetric else torch.uint8
    return RoundedWeight(
        _ungrouped(codes.to(dtype), weight.shape[1]),
        scales.squeeze(-1),
        None if zero_points is None else zero_points.squeeze(-1).to(torch.uint8),
    )


def search_clip(weight: torch.Tensor, scheme: WeightOnlyScheme) -> float:
    """Find the one clip ratio for the whole weight that makes the mean squared error of the rounded weight least.

    Of 1.0, 0.995 and so on to 0.805; of equal ones the greatest.

    Args:
        weight: [out, in], any floating dtype.
        scheme: How it is rounded.

    Source: INC 2.6.1, ``rtn_args`` with ``enable_mse_search``.

    Example:
        >>> search_clip(torch.tensor([[7.0, 3.0, -1.0]]), WeightOnlyScheme())
        1.0
    """
    values = weight.detach().to(torch.float32)

    def error(clip_ratio: float) -> float:
        rounded = rounded_values(round_to_nearest(values, scheme, clip_ratio), scheme)
        return F.mse_loss(rounded, values).item()

    return min(_CLIP_RATIOS, key=error)


def straight_through(values: torch.Tensor, scheme: WeightOnlyScheme) -> torch.Tensor:
    """Round as `round_to_nearest` does, with gradients, float32 [out, in].

    To a gradient the rounding error of a weight is a share of its group's range: it grows with the range, and not with
    the weight.

    Args:
        values: [out, in], float32.
        scheme: How.

    Example:
        >>> values = torch.tensor([[7.0, 0.4]], requires_grad=True)
        >>> straight_through(values, WeightOnlyScheme()).sum().backward()
        >>> values.grad  # of the greatest value 1 - 0.4 / 7: what 0.4 lost grows with it
        tensor([[0.9429, 1.0000]])
    """
    with torch.no_grad():
        errors = rounded_values(round_to_nearest(values, scheme), scheme) - values
    length = _group_length(scheme.group_size, values.shape[1])
    low, high = _bounds(_grouped(values, length))
    extent = torch.maximum(high, -low) if scheme.symmetric else high - low
    growth = extent / extent.detach().clamp(min=SMALLEST_SCALE)
    return values + (_grouped(errors, length) * growth).flatten(1)[:, : values.shape[1]]


def rounded_values(rounded: RoundedWeight, scheme: WeightOnlyScheme) -> torch.Tensor:
    """Return the float32 values [out, in] of a rounded weight, whatever kind of codes it has.

    Example:
        >>> scheme = WeightOnlyScheme(codes="fp4_e2m1")
        >>> rounded_values(round_to_nearest(torch.tensor([[6.0, 2.6, 0.0]]), scheme), scheme)
        tensor([[6., 3., 0.]])
    """
    return decoded(*rounded, scheme.group_size, scheme.codes)


def decoded(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    group_size: int,
    kind: Codes = "int",
) -> torch.Tensor:
    """Return the float32 values [out, in] that codes stand for: ``(code - zero point) * scale``.

    Args:
        codes: [out, in], any integer dtype.
        scales: [out, groups].
        zero_points: [out, groups], or None.
        group_size: Of the scheme.
        kind: Of the scheme: other than ``"int"``, a code counts as its number in the table.
    """
    columns = codes.shape[1]
    numbers = codes.to(torch.float32) if kind == "int" else float_values(codes, kind)
    values = _grouped(numbers, _group_length(group_size, columns))
    if zero_points is not None:
        values.sub_(zero_points.unsqueeze(-1))
    return values.mul_(scales.unsqueeze(-1)).flatten(1)[:, :columns]


def codes_in_word(bits: int, container: torch.dtype = torch.int32) -> int:
    """How many whole codes fit into a word."""
    return container.itemsize * _BYTE // bits


def pack(codes: torch.Tensor, bits: int, container: torch.dtype = torch.int32) -> torch.Tensor:
    """Put the codes of each row into words, the first one into the lowest bits; bits that no code fills are 0.

    Args:
        codes: [rows, columns] of any integer dtype, negative ones as two's complement.
        bits: Of a code.
        container: What words are: int8, int16, int32 or int64.

    Returns:
        [rows, words] of the container.

    Source: INC 2.6.1, ``export_compressed_model(use_optimum_format=False)``; the same words.

    Example:
        >>> pack(torch.tensor([[1, 2, -1]]), bits=4).tolist() == [[0xF21]]
        True
    """
    count, wide = codes_in_word(bits, container), torch.int64 if container == torch.int64 else torch.int32
    words = torch.zeros(len(codes), -(-codes.shape[1] // count), dtype=wide, device=codes.device)
    for place in range(count):
        column = (codes[:, place::count].to(wide) & (2**bits - 1)) << (bits * place)
        words[:, : column.shape[1]] |= column
    return words.to(container)


def unpack(words: torch.Tensor, bits: int, columns: int, *, signed: bool) -> torch.Tensor:
    """Take codes out of words; the way back from `pack`.

    Args:
        words: [rows, words] of any container.
        bits: Of a code.
        columns: How many codes a row has.
        signed: Whether codes are two's complement.

    Returns:
        [rows, columns], int32.

    Example:
        >>> unpack(torch.tensor([[0xF21]], dtype=torch.int32), bits=4, columns=3, signed=True).tolist()
        [[1, 2, -1]]
    """
    wide = words if words.dtype == torch.int64 else words.to(torch.int32)
    shifts = torch.arange(0, codes_in_word(bits, words.dtype) * bits, bits, dtype=wide.dtype, device=words.device)
    codes = (wide.unsqueeze(-1) >> shifts).bitwise_and_(2**bits - 1).to(torch.int32).flatten(1)[:, :columns]
    middle = 2 ** (bits - 1)
    return codes.bitwise_xor_(middle).sub_(middle) if signed else codes


def _group_length(group_size: int, columns: int) -> int:
    return columns if group_size == -1 else min(group_size, columns)


def _grouped(values: torch.Tensor, length: int) -> torch.Tensor:
    """Shape [out, groups, length]; a shorter last group is filled with zeros, which change no range."""
    missing = -values.shape[1] % length
    return (F.pad(values, (0, missing)) if missing else values).view(len(values), -1, length)


def _ungrouped(codes: torch.Tensor, columns: int) -> torch.Tensor:
    return codes.flatten(1)[:, :columns].contiguous()


def _bounds(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the greatest value of each group, and 0: [out, groups, 1]."""
    # Not aminmax, which has no gradient in torch 2.8.
    least, greatest = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
    return least.clamp(max=0), greatest.clamp(min=0)


def _code_range(scheme: WeightOnlyScheme) -> tuple[int, int]:
    if scheme.symmetric:
        return -(2 ** (scheme.bits - 1)), 2 ** (scheme.bits - 1) - 1
    return 0, 2**scheme.bits - 1


def _magnitude(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The greatest magnitude of each group; 1 where there is nothing but 0."""
    magnitude = torch.maximum(high, -low)
    return torch.where(magnitude >= SMALLEST_SCALE, magnitude, 1.0)


def _symmetric(low: torch.Tensor, high: torch.Tensor, scheme: WeightOnlyScheme) -> tuple[torch.Tensor, None]:
    magnitude = _magnitude(low, high)
    least, greatest = _code_range(scheme)
    if not scheme.full_range:
        return magnitude / greatest, None
    return torch.where(high > -low, magnitude / least, magnitude / -least), None


def _asymmetric(low: torch.Tensor, high: torch.Tensor, scheme: WeightOnlyScheme) -> tuple[torch.Tensor, torch.Tensor]:
    is_zero = high - low < SMALLEST_SCALE
    low, high = torch.where(is_zero, -1.0, low), torch.where(is_zero, 1.0, high)
    scales = (high - low) / _code_range(scheme)[1]
    return scales, torch.round(-low / scales)
