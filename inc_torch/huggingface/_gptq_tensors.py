"""The tensors of one layer in a directory of GPTQ, as AutoGPTQ and GPTQModel write it.

Of a layer with ``in`` inputs and ``out`` outputs, where a word of int32 holds ``32 // bits`` codes::

    qweight  int32 [words of in, out]      codes from 0
    qzeros   int32 [groups, words of out]  zero points; with the format "gptq" (v1) one less than they are
    scales   float [groups, out]
    g_idx    int32 [in]                    the group of each input; may be missing where neighbours share one
    bias     float [out], or missing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, final

import torch

from inc_torch.quantizers import OPTIMUM, RoundedWeight, WeightOnlyScheme, group_of_each

__all__ = ["BITS", "FORMATS", "GptqLayer", "GptqNumbers", "problem_of_shapes", "read_layer"]

BITS: Final = (2, 4, 8)
"""Widths of codes that words hold whole; those of three bits lie across words."""

FORMATS: Final = ("gptq", "gptq_v2")
_WORD: Final = 32


@final
@dataclass(frozen=True, slots=True)
class GptqNumbers:
    """What all layers of a directory have in common.

    Attributes:
        bits: Of a code.
        group_size: How many inputs share a scale; -1 gives a whole row one.
        format: ``"gptq"`` or ``"gptq_v2"``.
        borrowing: Whether the format "gptq" was made by taking one from each zero point of a word as a whole, as
            GPTQModel does, so that one below 0 borrows from the next; others wrap around by themselves.
    """

    bits: int
    group_size: int
    format: str = "gptq"
    borrowing: bool = False


class GptqLayer(NamedTuple):
    """A layer as it was read.

    Attributes:
        rounded: Codes, scales and zero points; symmetric codes lie around 0 and have none.
        scheme: What they are of.
        bias: float32, or None.
        group_of: The group of each input; None where neighbours share one.
    """

    rounded: RoundedWeight
    scheme: WeightOnlyScheme
    bias: torch.Tensor | None
    group_of: torch.Tensor | None


def problem_of_shapes(
    shapes: Mapping[str, tuple[int, ...]], outputs: int, inputs: int, numbers: GptqNumbers
) -> str | None:
    """What is wrong with the shapes of a layer's tensors, as part of a sentence; None if nothing is.

    Example:
        >>> shapes = {"qweight": (8, 32), "qzeros": (2, 4), "scales": (2, 32)}
        >>> problem_of_shapes(shapes, 32, 64, GptqNumbers(4, 32))
        >>> problem_of_shapes(shapes, 32, 64, GptqNumbers(8, 32))
        "'qweight' has shape (8, 32), expected (16, 32)"
    """
    count = _WORD // numbers.bits
    groups = 1 if numbers.group_size == -1 else -(-inputs // numbers.group_size)
    expected: dict[str, tuple[int, ...]] = {
        "qweight": (-(-inputs // count), outputs),
        "qzeros": (groups, -(-outputs // count)),
        "scales": (groups, outputs),
    }
    if missing := expected.keys() - shapes.keys():
        return f"{min(missing)!r} is missing"
    for name, shape in (expected | {"g_idx": (inputs,), "bias": (outputs,)}).items():
        if name in shapes and shapes[name] != shape:
            return f"{name!r} has shape {shapes[name]}, expected {shape}"
    return None


def read_layer(tensors: Mapping[str, torch.Tensor], inputs: int, numbers: GptqNumbers) -> GptqLayer:
    """Make sense of the tensors of a layer, whose shapes are right, see `problem_of_shapes`.

    Args:
        tensors: By the last part of their names.
        inputs: How many the layer has.
        numbers: Of the directory.

    Raises:
        ValueError: Words are no int32, or there is no such group; the message is part of a sentence.
    """
    for name in ("qweight", "qzeros"):
        if tensors[name].dtype != torch.int32:
            message = f"{name!r} has dtype {tensors[name].dtype}, expected torch.int32"
            raise ValueError(message)
    asymmetric = WeightOnlyScheme(numbers.bits, numbers.group_size, symmetric=False)
    words = tensors["qzeros"]
    if numbers.format == FORMATS[0] and numbers.borrowing:
        words = words + sum(1 << place for place in range(0, _WORD, numbers.bits))
    buffers = {"qweight": tensors["qweight"], "scales": tensors["scales"], "qzeros": words}
    codes, scales, zero_points = OPTIMUM.unpacked(buffers, asymmetric, inputs)
    if zero_points is not None and (numbers.format != FORMATS[0] or numbers.borrowing):
        zero_points = zero_points.sub(1).bitwise_and_(2**numbers.bits - 1)  # they are stored as they are
    bias = tensors["bias"].to(torch.float32) if "bias" in tensors else None
    group_of = _group_of(tensors.get("g_idx"), asymmetric, inputs, len(tensors["scales"]))
    middle = 2 ** (numbers.bits - 1)
    if zero_points is None or bool((zero_points == middle).all()):
        rounded = RoundedWeight((codes - middle).to(torch.int8), scales.contiguous(), None)
        return GptqLayer(rounded, replace(asymmetric, symmetric=True), bias, group_of)
    rounded = RoundedWeight(codes.to(torch.uint8), scales.contiguous(), zero_points.to(torch.uint8))
    return GptqLayer(rounded, asymmetric, bias, group_of)


def _group_of(given: torch.Tensor | None, scheme: WeightOnlyScheme, inputs: int, groups: int) -> torch.Tensor | None:
    """The group of each input, where neighbours share none."""
    if given is None or torch.equal(given.to(torch.int64), group_of_each(scheme, inputs)):
        return None
    least, greatest = int(given.min()), int(given.max())
    if given.is_floating_point() or least < 0 or greatest >= groups:
        message = f"'g_idx' has values from {least} to {greatest}, expected groups from 0 to {groups - 1}"
        raise ValueError(message)
    return given
