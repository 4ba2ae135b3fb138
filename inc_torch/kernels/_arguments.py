"""The arguments of the steps, field by field as in ``source/arguments.h``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

__all__ = [
    "STRUCTURES",
    "AttentionArguments",
    "BlockScoresArguments",
    "CollectPrefixArguments",
    "CountDigitsArguments",
    "DynamicRangeArguments",
    "ElementwiseArguments",
    "EpilogueArguments",
    "FewBitsArguments",
    "KeepLargestArguments",
    "LayerNormArguments",
    "MatrixArguments",
    "Operation",
    "PickInGroupsArguments",
    "PoolArguments",
    "QuantizeArguments",
    "RotateArguments",
    "ZeroBlocksArguments",
]

_Field = tuple[str, type]


class Operation(IntEnum):
    """Which kernel a step runs."""

    MATRIX = 0
    DEPTHWISE = 1
    QUANTIZE = 2
    DYNAMIC_RANGE = 3
    LAYER_NORM = 4
    ATTENTION = 5
    ADD = 6
    REQUANTIZE = 7
    GATED = 8
    ACTIVATE = 9
    AFFINE = 10
    MAX_POOL = 11
    AVERAGE_POOL = 12
    GLOBAL_AVERAGE_POOL = 13
    SCALE_CHANNELS = 14
    ROTATE = 15
    INTERLEAVE = 16
    BLOCK_SCORES = 17
    ZERO_BLOCKS = 18
    PICK_IN_GROUPS = 19
    COUNT_DIGITS = 20
    COLLECT_PREFIX = 21
    KEEP_LARGEST = 22
    FEW_BITS_PRODUCT = 23
    EXPAND_FEW_BITS = 24


def _pointers(names: str) -> list[_Field]:
    return [(name, ctypes.c_void_p) for name in names.split()]


def _integers(names: str) -> list[_Field]:
    return [(name, ctypes.c_int64) for name in names.split()]


def _floats(names: str) -> list[_Field]:
    return [(name, ctypes.c_float) for name in names.split()]


def _short(names: str) -> list[_Field]:
    return [(name, ctypes.c_int32) for name in names.split()]


def _arrays(names: str, length: int) -> list[_Field]:
    return [(name, ctypes.c_int64 * length) for name in names.split()]


_OPERATION: list[_Field] = [("operation", ctypes.c_int64)]
_WINDOW = _integers(
    "kernel_height kernel_width stride_height stride_width padding_height padding_width dilation_height dilation_width"
)


class EpilogueArguments(ctypes.Structure):
    """What happens to sums before they are written."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_pointers("residual output scale bias offset"),
        *_integers("residual_stride output_stride"),
        *_floats("residual_scale residual_zero inverse shift"),
        *_short("code_low code_high"),
        *_floats("low high residual_factor"),
        *_short("folded"),
        *_short("output_type residual_type activation activate_last"),
    )


class MatrixArguments(ctypes.Structure):
    """Linear layers and convolutions."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("input weight dynamic weight_scale column_sums dynamic_scale dynamic_offset padding scratch"),
        *_integers("rows columns padded_columns groups taps depth pixel_stride line_stride image_stride"),
        *_integers("height width channels output_height output_width"),
        *_WINDOW,
        *_integers("spatial"),
        ("epilogue", EpilogueArguments),
    )


class QuantizeArguments(ctypes.Structure):
    """Floats to codes, and back."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("input output dynamic"),
        *_arrays("sizes input_strides output_strides", 4),
        *_floats("scale zero"),
        *_short("input_type output_type"),
    )


class DynamicRangeArguments(ctypes.Structure):
    """The grid of a whole tensor."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("input result"),
        *_integers("rows columns stride symmetric"),
    )


class LayerNormArguments(ctypes.Structure):
    """Layer norm and root mean square norm."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("input residual weight bias output codes"),
        *_integers("rows columns input_stride residual_stride output_stride codes_stride"),
        *_floats("epsilon inverse shift"),
        *_short("root_mean_square"),
    )


class AttentionArguments(ctypes.Structure):
    """Scaled dot product attention."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("query key value output mask"),
        *_integers("batch heads key_heads queries keys size value_size"),
        *_arrays("query_strides key_strides value_strides output_strides", 3),
        *_arrays("mask_strides", 4),
        *_floats("scale inverse shift"),
        *_short("query_type key_type value_type output_type mask_type causal"),
    )


class ElementwiseArguments(ctypes.Structure):
    """One or two operands of one shape."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("first second output channel_scale channel_shift"),
        *_integers("rows columns first_stride second_stride output_stride rows_of_image"),
        *_floats("first_scale first_zero second_scale second_zero inverse shift low high"),
        *_short("first_type second_type output_type activation"),
    )


class PoolArguments(ctypes.Structure):
    """Pooling of channels-last codes."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("input output"),
        *_integers("batch channels height width output_height output_width"),
        *_integers("pixel_stride line_stride image_stride output_stride"),
        *_WINDOW,
        *_integers("count_padding"),
        *_floats("scale zero inverse shift"),
        *_integers("output_type"),
    )


class RotateArguments(ctypes.Structure):
    """Rotary position embedding."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("input cosine sine output"),
        *_integers("batch heads positions half"),
        *_arrays("input_strides cosine_strides sine_strides output_strides", 3),
    )


class BlockScoresArguments(ctypes.Structure):
    """Scores of blocks of rows by one column."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("first second before output finite"),
        *_integers("rows columns block reduction"),
        *_floats("divisor decay"),
    )


class ZeroBlocksArguments(ctypes.Structure):
    """Zeros where a mask prunes."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("values keep"),
        *_integers("rows columns block"),
    )


class PickInGroupsArguments(ctypes.Structure):
    """The smallest scores of each group of neighbours."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("scores keep group_scores mask"),
        *_integers("groups size pruned reduction divides"),
    )


class CountDigitsArguments(ctypes.Structure):
    """How often each digit of scores occurs."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("scores pieces prefixes counts"),
        *_integers("count shift width"),
    )


class CollectPrefixArguments(ctypes.Structure):
    """Scores that begin with some digits."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("scores pieces prefixes places output"),
        *_integers("count shift"),
    )


class KeepLargestArguments(ctypes.Structure):
    """Which scores are above a threshold."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("scores pieces thresholds ties keep"),
        *_integers("count"),
    )


class FewBitsArguments(ctypes.Structure):
    """A weight of few bits, and what it is multiplied with."""

    _fields_: ClassVar[Sequence[_Field]] = (
        *_OPERATION,
        *_pointers("input words scales zeros group_of bias table output"),
        *_integers("rows inputs outputs groups group bits input_stride output_stride output_type"),
    )


_ELEMENTWISE = (
    Operation.ADD,
    Operation.REQUANTIZE,
    Operation.GATED,
    Operation.ACTIVATE,
    Operation.AFFINE,
    Operation.SCALE_CHANNELS,
    Operation.INTERLEAVE,
)
_POOLS = (Operation.MAX_POOL, Operation.AVERAGE_POOL, Operation.GLOBAL_AVERAGE_POOL)
STRUCTURES: dict[Operation, type[ctypes.Structure]] = {
    Operation.MATRIX: MatrixArguments,
    Operation.DEPTHWISE: MatrixArguments,
    Operation.QUANTIZE: QuantizeArguments,
    Operation.DYNAMIC_RANGE: DynamicRangeArguments,
    Operation.LAYER_NORM: LayerNormArguments,
    Operation.ATTENTION: AttentionArguments,
    Operation.ROTATE: RotateArguments,
    Operation.BLOCK_SCORES: BlockScoresArguments,
    Operation.ZERO_BLOCKS: ZeroBlocksArguments,
    Operation.PICK_IN_GROUPS: PickInGroupsArguments,
    Operation.COUNT_DIGITS: CountDigitsArguments,
    Operation.COLLECT_PREFIX: CollectPrefixArguments,
    Operation.KEEP_LARGEST: KeepLargestArguments,
    Operation.FEW_BITS_PRODUCT: FewBitsArguments,
    Operation.EXPAND_FEW_BITS: FewBitsArguments,
    **dict.fromkeys(_ELEMENTWISE, ElementwiseArguments),
    **dict.fromkeys(_POOLS, PoolArguments),
}
"""The structure of every operation's arguments."""
