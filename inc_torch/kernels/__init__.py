"""Compiled kernels for int8 inference, and for pruning, on x86-64 CPUs with AVX512-VNNI, with AMX where there is that.

They are plain C++ with a C interface, compiled at first use by the machine's compiler, and know nothing of torch. A
*step* is one kernel with its operands; a `Program` runs many steps by one call. Codes are uint8 with the meaning of a
`Grid`, weights are int8 with one scale for each output channel, images are in channels-last memory. Those for pruning
work on float32: scores of units, zeros where masks prune, and exact selection of the smallest scores.

Where they cannot be used, `available` is False and `reason` says why; ``INC_TORCH_KERNELS=0`` switches them
off, ``INC_TORCH_KERNELS=avx512`` their use of AMX.
"""

from __future__ import annotations

from inc_torch.kernels._attention import attention
from inc_torch.kernels._build import KernelsUnavailableError
from inc_torch.kernels._checks import OperandError
from inc_torch.kernels._conv import conv2d
from inc_torch.kernels._elementwise import activation, add, affine, gated, interleave, requantize, scale_channels
from inc_torch.kernels._few_bits import FewBitsWeight
from inc_torch.kernels._library import available, reason, require, uses_tiles
from inc_torch.kernels._linear import linear
from inc_torch.kernels._normalization import layer_norm
from inc_torch.kernels._packing import PackedWeight, pack_conv, pack_linear
from inc_torch.kernels._pooling import avg_pool2d, global_avg_pool, max_pool2d
from inc_torch.kernels._program import JoinedStep, Program, Step, counting_steps
from inc_torch.kernels._rotation import rotate
from inc_torch.kernels._rounding import dequantize, dynamic_range, quantize
from inc_torch.kernels._selection import collect_prefix, count_digits, keep_largest
from inc_torch.kernels._sparsity import block_scores, pick_in_groups, zero_blocks
from inc_torch.kernels._types import Activation, Clamp, Grid

__all__ = [
    "Activation",
    "Clamp",
    "FewBitsWeight",
    "Grid",
    "JoinedStep",
    "KernelsUnavailableError",
    "OperandError",
    "PackedWeight",
    "Program",
    "Step",
    "activation",
    "add",
    "affine",
    "attention",
    "available",
    "avg_pool2d",
    "block_scores",
    "collect_prefix",
    "conv2d",
    "count_digits",
    "counting_steps",
    "dequantize",
    "dynamic_range",
    "gated",
    "global_avg_pool",
    "interleave",
    "keep_largest",
    "layer_norm",
    "linear",
    "max_pool2d",
    "pack_conv",
    "pack_linear",
    "pick_in_groups",
    "quantize",
    "reason",
    "requantize",
    "require",
    "rotate",
    "scale_channels",
    "uses_tiles",
    "zero_blocks",
]
