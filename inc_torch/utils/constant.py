"""Ready-made words for ``op_type_dict`` and ``op_name_dict``, under INC's import path.

``FP32`` and ``BF16`` are whole rules; the others are one side of a rule, for weights (INT8) or activations (UINT8).

Example:
    >>> from inc_torch import PostTrainingQuantConfig
    >>> rules = {"head": FP32, "layer.*": {"activation": UINT8_ASYM_MINMAX_PERTENSOR}}
    >>> PostTrainingQuantConfig(op_name_dict=rules).to_spec().quant.treatment_of("head", "Linear")
    <FloatType.FLOAT32: 'float32'>
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BF16",
    "FP32",
    "INT8_SYM_KL_PERCHANNEL",
    "INT8_SYM_KL_PERTENSOR",
    "INT8_SYM_MINMAX_PERCHANNEL",
    "INT8_SYM_MINMAX_PERTENSOR",
    "UINT8_ASYM_KL_PERCHANNEL",
    "UINT8_ASYM_KL_PERTENSOR",
    "UINT8_ASYM_MINMAX_PERCHANNEL",
    "UINT8_ASYM_MINMAX_PERTENSOR",
]

Side = dict[str, list[str]]


def _side(dtype: str, scheme: str, algorithm: str, granularity: str) -> Side:
    return {"dtype": [dtype], "scheme": [scheme], "algorithm": [algorithm], "granularity": [granularity]}


FP32: Final[dict[str, Side]] = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
BF16: Final[dict[str, Side]] = {"weight": {"dtype": ["bf16"]}, "activation": {"dtype": ["bf16"]}}
INT8_SYM_MINMAX_PERCHANNEL: Final = _side("int8", "sym", "minmax", "per_channel")
INT8_SYM_MINMAX_PERTENSOR: Final = _side("int8", "sym", "minmax", "per_tensor")
INT8_SYM_KL_PERCHANNEL: Final = _side("int8", "sym", "kl", "per_channel")
INT8_SYM_KL_PERTENSOR: Final = _side("int8", "sym", "kl", "per_tensor")
UINT8_ASYM_MINMAX_PERCHANNEL: Final = _side("uint8", "asym", "minmax", "per_channel")
UINT8_ASYM_MINMAX_PERTENSOR: Final = _side("uint8", "asym", "minmax", "per_tensor")
UINT8_ASYM_KL_PERCHANNEL: Final = _side("uint8", "asym", "kl", "per_channel")
UINT8_ASYM_KL_PERTENSOR: Final = _side("uint8", "asym", "kl", "per_tensor")
