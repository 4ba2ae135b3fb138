"""INC's ready-made words for op dicts."""

from __future__ import annotations

import pytest

from inc_torch import PostTrainingQuantConfig
from inc_torch.core.errors import ConfigError
from inc_torch.quantizers import FloatType, QuantScheme
from inc_torch.utils import constant


def treatment(rule):
    return PostTrainingQuantConfig(op_name_dict={"fc": rule}).to_spec().quant.treatment_of("fc", "Linear")


def test_whole_rules():
    assert treatment(constant.FP32) is FloatType.FLOAT32
    assert treatment(constant.BF16) is FloatType.BFLOAT16


def test_sides():
    rule = {"weight": constant.INT8_SYM_MINMAX_PERTENSOR, "activation": constant.UINT8_ASYM_MINMAX_PERTENSOR}
    scheme = treatment(rule)
    assert isinstance(scheme, QuantScheme)
    assert (scheme.per_channel, scheme.symmetric_input, type(scheme.input_observer).__name__) == (
        False,
        False,
        "MinMax",
    )
    assert type(treatment({"activation": constant.UINT8_ASYM_KL_PERTENSOR}).input_observer).__name__ == "Kl"


def test_what_no_kernel_can_do_is_refused_by_name():
    with pytest.raises(ConfigError, match="one input scale a tensor"):
        treatment({"activation": constant.UINT8_ASYM_MINMAX_PERCHANNEL})
