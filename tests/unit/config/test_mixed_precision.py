"""What users write into a `MixedPrecisionConfig`."""

from __future__ import annotations

import pytest
import torch

from inc_torch import AccuracyCriterion, MixedPrecisionConfig, TuningCriterion
from inc_torch.config import Config
from inc_torch.core.errors import ConfigError


def test_every_key_of_inc_is_accepted_in_its_order():
    config = MixedPrecisionConfig(
        "cpu", "default", "bf16", "net", [], ["y"], 1, TuningCriterion(), AccuracyCriterion(), ["fp16"], {}, {}, None
    )
    assert config == MixedPrecisionConfig(model_name="net", outputs="y", quant_level=1, excluded_precisions="fp16")
    assert config.precisions == ("bf16",) and config.approach == "mixed_precision"


@pytest.mark.parametrize("word", ["bf16", "bfloat16", ["bf16"], ("bf16", "bf16")])
def test_precisions_are_listed(word):
    assert MixedPrecisionConfig(precisions=word).precisions == ("bf16",)
    assert MixedPrecisionConfig(precision=word) == MixedPrecisionConfig()


def test_precision_is_the_same_option():
    assert MixedPrecisionConfig(precision=["fp16", "bf16"]).precisions == ("fp16", "bf16")
    assert MixedPrecisionConfig(precisions=["fp16"], precision="fp16").precisions == ("fp16",)
    with pytest.raises(ConfigError, match="they are the same option"):
        MixedPrecisionConfig(precisions=["fp16"], precision="bf16")


def test_excluded_precisions_have_an_effect():
    assert MixedPrecisionConfig(precisions=["bf16", "fp16"], excluded_precisions=["bf16"]).wanted == ("fp16",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precisions": "bf6"}, r"precisions\[0\]='bf6': expected 'bf16' or 'fp16'. Did you mean 'bf16'"),
        ({"precisions": ["fp32"]}, "Leave it out: what gains nothing stays in float32 anyway"),
        ({"precisions": []}, "expected at least one of 'bf16' and 'fp16'"),
        ({"precisions_": "bf16"}, "has no option 'precisions_'. Did you mean 'precisions'"),
        ({"backend": "itex"}, "expected 'default' or 'ipex'"),
        ({"quant_level": 2}, "expected 'auto', 0 or 1"),
        ({"op_name_dict": {"fc": {"weight": {"dtype": "int8"}}}}, "Mixed precision makes floats only"),
        ({"op_name_dict": {"fc": {"weight": {"dtyp": "fp32"}}}}, "has no option 'dtyp'. Did you mean 'dtype'"),
        ({"op_type_dict": {"(": {}}}, "expected keys that are regular expressions"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ConfigError, match=message):
        MixedPrecisionConfig(**options)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"weight": {"dtype": "fp32"}}, ("fp32",)),
        ({"activation": {"dtype": ["fp32"]}}, ("fp32",)),
        ({"weight": {"dtype": ["bf16", "fp32"]}, "activation": {"dtype": ["fp32", "bf16"]}}, ("bf16", "fp32")),
        ({"weight": {"dtype": ["bf16"]}, "activation": {"dtype": ["fp32"]}}, ("fp32",)),
        ({"weight": {"dtype": "bf16"}}, ("bf16",)),
        ({"weight": {"dtype": "fp16"}}, ("fp32",)),
    ],
)
def test_a_word_counts_if_both_sides_allow_it(rule, words):
    spec = MixedPrecisionConfig(op_name_dict={"fc": rule}).to_spec()
    assert spec.words_of("fc", "Linear") == words
    assert spec.words_of("other", "Linear") == ("bf16", "fp32")


def test_it_goes_through_plain_values():
    config = MixedPrecisionConfig(
        precision="fp16", relative=0.02, timeout=3, example_inputs=torch.ones(1), op_type_dict={"Conv.*": {}}
    )
    again = Config.from_dict(config.to_dict())
    assert again == config.replace(example_inputs=None)
    assert again.accuracy_criterion.relative == 0.02 and again.tuning_criterion.timeout == 3
    assert "example_inputs=..." in repr(config)
