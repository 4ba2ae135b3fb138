"""Weights in the order in which the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from inc_torch.kernels._checks import OperandError, check, operand

__all__ = ["PackedWeight", "pack_conv", "pack_linear"]

LANES = 16
"""32-bit sums in a vector."""
QUAD = 4
"""Products that one instruction adds into a sum."""
FEW_CHANNELS = 16
"""Below it a line of the kernel is read as one run of bytes."""
WIDE = 64
"""Channels that a depthwise kernel takes at once."""
MOST_TAPS = 128
"""Of a depthwise kernel."""
TILE_QUADS = 16
"""Of a tile; tiles are read whole, so as much follows the last pair."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """An int8 weight in the order of the kernels.

    Attributes:
        data: The bytes.
        column_sums: Sum of the codes of each output channel, int32.
        rows: Output channels.
        columns: Codes of one output channel.
        form: ``"dense"``: [tap, channel]; ``"lines"``: a line of the kernel and its channels are one run;
            ``"depthwise"``: channels apart.
        groups: Independent parts.
        kernel: Height and width; (1, 1) for a linear layer.
        codes: Of the form ``"lines"`` alone: the codes, for convolutions that cannot use it.
    """

    data: torch.Tensor
    column_sums: torch.Tensor
    rows: int
    columns: int
    form: Literal["dense", "lines", "depthwise"] = "dense"
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    codes: torch.Tensor | None = None

    @property
    def padded_rows(self) -> int:
        """Output channels of a group, padded as its scales must be."""
        if self.form == "depthwise":
            return -(-self.rows // WIDE) * WIDE
        return -(-(self.rows // self.groups) // LANES) * LANES

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Copy a vector of output channels to the padded length, zero where there is no channel.

        Few channels of a depthwise kernel are repeated: pixels side by side are then computed as one.
        """
        if self.form == "depthwise" and WIDE % self.rows == 0:
            return values.repeat(WIDE // self.rows)
        parts = 1 if self.form == "depthwise" else self.groups
        result = values.new_zeros(parts, self.padded_rows)
        result[:, : self.rows // parts] = values.view(parts, -1)
        return result.flatten()


def _pack_group(taps: torch.Tensor) -> torch.Tensor:
    """Pack [rows, taps, depth] into pairs of vectors, and a last one alone: [taps, depth / 4, columns, 4]."""
    rows, count, depth = taps.shape
    quads = -(-depth // QUAD)
    vectors = -(-rows // LANES)
    padded = taps.new_zeros(vectors * LANES, count, quads * QUAD)
    padded[:rows, :, :depth] = taps
    pairs = torch.split(padded.view(vectors * LANES, count, quads, QUAD), 2 * LANES)
    return torch.cat([pair.permute(1, 2, 0, 3).reshape(-1) for pair in pairs])


def _sums(codes: torch.Tensor) -> torch.Tensor:
    return codes.flatten(1).sum(1, dtype=torch.int32)


def _bytes(packed: torch.Tensor) -> torch.Tensor:
    return packed.contiguous().view(torch.uint8)


def _pair_bytes(pairs: torch.Tensor) -> torch.Tensor:
    return _bytes(torch.cat([pairs, pairs.new_zeros(TILE_QUADS * 2 * LANES * QUAD)]))


def pack_linear(codes: torch.Tensor) -> PackedWeight:
    """Pack the weight of a linear layer.

    Args:
        codes: int8 [output, input].

    Raises:
        OperandError: It is something else.
    """
    operand(codes, "pack_linear", "codes", (torch.int8,))
    check(codes.dim() == 2, "pack_linear", "codes", f"of shape {tuple(codes.shape)}", "[output, input]")  # noqa: PLR2004
    codes = codes.detach()
    return PackedWeight(_pair_bytes(_pack_group(codes.unsqueeze(1))), _sums(codes), *codes.shape)


def pack_conv(codes: torch.Tensor, groups: int) -> PackedWeight:
    """Pack the weight of a convolution in the form that suits it.

    Args:
        codes: int8 [output, input / groups, height, width].
        groups: Of the convolution; one for each channel makes it depthwise.

    Raises:
        OperandError: It is something else, or the groups do not divide the output channels.
    """
    operand(codes, "pack_conv", "codes", (torch.int8,))
    shape = tuple(codes.shape)
    check(codes.dim() == 4, "pack_conv", "codes", f"of shape {shape}", "[output, input, height, width]")  # noqa: PLR2004
    rows, depth, height, width = shape
    check(groups > 0 and rows % groups == 0, "pack_conv", "groups", groups, f"a divisor of {rows} output channels")
    codes = codes.detach()
    if groups > 1 and groups == rows and depth == 1 and height * width <= MOST_TAPS:
        return _pack_depthwise(codes)
    if groups == 1 and depth < FEW_CHANNELS and width > 1:
        lines = codes.permute(0, 2, 3, 1).reshape(rows, height, width * depth)
        data = _pair_bytes(_pack_group(lines))
        return PackedWeight(data, _sums(codes), rows, width * height * depth, "lines", 1, (height, width), codes)
    return pack_taps(codes, groups)


def pack_taps(codes: torch.Tensor, groups: int) -> PackedWeight:
    """Pack the weight of a convolution in the form that every convolution can use."""
    rows, depth, height, width = codes.shape
    taps = codes.permute(0, 2, 3, 1).reshape(rows, height * width, depth)
    data = torch.cat([_pack_group(group) for group in taps.chunk(groups)])
    return PackedWeight(_pair_bytes(data), _sums(codes), rows, depth * height * width, "dense", groups, (height, width))


def _pack_depthwise(codes: torch.Tensor) -> PackedWeight:
    """Pack into [64 channels][column][4 rows][vector][128-bit lane][4 channels][tap]: see ``source/depthwise.cpp``."""
    rows, _, height, width = codes.shape
    chunks, quads = -(-rows // WIDE), width * -(-height // QUAD)
    columns = F.pad(codes[:, 0].transpose(1, 2), (0, -height % QUAD)).flatten(1)
    padded = F.pad(columns, (0, 0, 0, chunks * WIDE - rows))
    if WIDE % rows == 0:
        padded = padded[:rows].repeat(WIDE // rows, 1)
    packed = padded.view(chunks, 4, 4, 4, quads, QUAD).permute(0, 4, 2, 1, 3, 5)
    data = _bytes(packed.reshape(-1))
    return PackedWeight(data, _sums(codes), rows, height * width, "depthwise", rows, (height, width))


def check_packed(weight: object, step: str) -> PackedWeight:
    """Return a weight that was packed.

    Raises:
        OperandError: It is something else.
    """
    if not isinstance(weight, PackedWeight):
        message = (
            f"inc_torch.kernels.{step}: weight is a {type(weight).__name__}, "
            "expected what pack_linear or pack_conv return."
        )
        raise OperandError(message)
    return weight
