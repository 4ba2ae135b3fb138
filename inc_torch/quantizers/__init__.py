"""Int8: what to quantize, training under int8 rounding, and int8 modules that run on oneDNN.

``prepare_qat -> enable_fake_quant -> (training step -> fold_ranges)* -> convert -> describe_int8 / rebuild_int8``
"""

from __future__ import annotations

from inc_torch.quantizers._convert import convert, describe_int8, int8_kernels, rebuild_int8
from inc_torch.quantizers._int8_modules import (
    Int8Conv1d,
    Int8Conv2d,
    Int8Conv3d,
    Int8Embedding,
    Int8Linear,
    Int8Module,
)
from inc_torch.quantizers._prepare import (
    Prepared,
    disable_fake_quant,
    enable_fake_quant,
    fold_ranges,
    load_observer_state,
    observer_state,
    prepare_qat,
    rounding_share,
)
from inc_torch.quantizers._spec import QATSpec, QuantRule, QuantScheme

__all__ = [
    "Int8Conv1d",
    "Int8Conv2d",
    "Int8Conv3d",
    "Int8Embedding",
    "Int8Linear",
    "Int8Module",
    "Prepared",
    "QATSpec",
    "QuantRule",
    "QuantScheme",
    "convert",
    "describe_int8",
    "disable_fake_quant",
    "enable_fake_quant",
    "fold_ranges",
    "int8_kernels",
    "load_observer_state",
    "observer_state",
    "prepare_qat",
    "rebuild_int8",
    "rounding_share",
]
