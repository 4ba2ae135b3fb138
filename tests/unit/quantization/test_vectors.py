"""Decisions that INC 2.6 made, as recorded: which modules become int8, by which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from inc_torch import PostTrainingQuantConfig, quantization
from inc_torch.core.errors import ConfigError, InexactWarning
from inc_torch.quantizers import FloatType, Int8Module, QuantScheme

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text())
CASES = VECTORS["op_dict_matching"]["cases"]
FP32 = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}


class M3(nn.Module):
    """The model of the cases, as the file describes it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(256, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1))))


TYPES = {"conv": "Conv2d", "fc1": "Linear", "fc2": "Linear"}
SYM_MINMAX = {"activation": {"scheme": ["sym"], "algorithm": ["minmax"]}}

AS_INC: dict[str, dict[str, Any]] = {
    "name exact": {"op_name_dict": {"fc1": FP32}},
    "name regex alternation": {"op_name_dict": {"conv|fc2": FP32}},
    "type Linear": {"op_type_dict": {"Linear": FP32}},
    "type regex": {"op_type_dict": {"Lin.*": FP32}},
    "name overrides type": {"op_type_dict": {"Linear": FP32}, "op_name_dict": {"fc2": SYM_MINMAX}},
    "restrict algo": {"op_type_dict": {"Linear": SYM_MINMAX}},
    "scalar instead of list": {"op_name_dict": {"fc1": {"weight": {"dtype": "fp32"}, "activation": {"dtype": "fp32"}}}},
    "weight fp32 only": {"op_name_dict": {"fc1": {"weight": {"dtype": ["fp32"]}}}},
    "default_qconfig fp32": {"op_name_dict": {"default_qconfig": FP32}},
    "calib 30": {"calibration_sampling_size": 30},
    "domain nlp": {"domain": "nlp"},
}


def inc_words(scheme: QuantScheme | FloatType) -> str:
    """A treatment in the words of the file."""
    if isinstance(scheme, FloatType):
        return {"float32": "fp32", "bfloat16": "bf16"}[scheme.value]
    mode = "dynamic" if scheme.dynamic else "static"
    symmetry = "sym" if scheme.symmetric_input else "asym"
    observer = "kl" if type(scheme.input_observer).__name__ == "Kl" else "minmax"
    granularity = "per_channel" if scheme.per_channel else "per_tensor"
    return f"int8/{mode}/act/uint8/{symmetry}/{observer}/wt/int8/sym/{granularity}"


@pytest.mark.parametrize("name", AS_INC)
def test_op_dicts_decide_as_in_inc(name: str) -> None:
    spec = PostTrainingQuantConfig(**AS_INC[name]).to_spec().quant
    expected = {op.partition("|")[0]: label for op, label in CASES[name]["ops"].items()}
    assert {module: inc_words(spec.treatment_of(module, kind)) for module, kind in TYPES.items()} == expected


@pytest.mark.parametrize("name", AS_INC)
def test_the_same_modules_become_int8(name: str) -> None:
    data = [torch.randn(8, 3, 8, 8) for _ in range(4)]
    quantized = quantization.fit(M3(), PostTrainingQuantConfig(**AS_INC[name]), calib_dataloader=data)
    expected = {module for module, kind in CASES[name]["modules"].items() if kind.startswith("quantized")}
    assert {module for module in TYPES if type(quantized.get_submodule(module)).__name__.startswith("Int8")} == expected


IGNORED_BY_INC = {
    "percentile algo",
    "first_conv recipe False",
    "weight_correction",
    "reduce_range True",
    "recipes unknown",
    "type Conv (no fullmatch)",
    "name regex partial (no fullmatch)",
    "unsupported option ignored",
    "device gpu",
}
REFUSED_BY_INC = {"bad dtype", "recipes bad type", "alpha bad str"}


def test_every_case_is_looked_at() -> None:
    assert {*AS_INC, *IGNORED_BY_INC, *REFUSED_BY_INC} == set(CASES)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "bad dtype": ({"op_name_dict": {"fc1": {"weight": {"dtype": "float64"}}}}, "float64"),
    "recipes bad type": ({"recipes": {"smooth_quant": 1}}, "expected True or False"),
    "alpha bad str": ({"recipes": {"smooth_quant": True, "smooth_quant_args": {"alpha": "best"}}}, "'auto'"),
    "recipes unknown": ({"recipes": {"smooth_qunt": True}}, "Did you mean 'smooth_quant'"),
    "unsupported option ignored": ({"op_type_dict": {"Linear": {"weight": {"granularity": "per_group"}}}}, "per_group"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_wrong_words_are_refused_when_the_config_is_built(name: str) -> None:
    options, message = REFUSALS[name]
    with pytest.raises(ConfigError, match=message):
        PostTrainingQuantConfig(**options)


class TestWhatIncIgnores:
    data: ClassVar = [torch.ones(8, 3, 8, 8)]

    def test_percentile_is_an_observer(self) -> None:
        config = PostTrainingQuantConfig(op_type_dict={"Linear": {"activation": {"algorithm": "percentile"}}})
        treatment = config.to_spec().quant.treatment_of("fc1", "Linear")
        assert isinstance(treatment, QuantScheme)
        assert type(treatment.input_observer).__name__ == "Percentile"

    def test_the_first_layer_stays_in_float(self) -> None:
        config = PostTrainingQuantConfig(recipes={"first_conv_or_matmul_quantization": False})
        quantized = quantization.fit(M3(), config, calib_dataloader=self.data)
        assert [type(quantized.get_submodule(name)).__name__ for name in TYPES] == [
            "Conv2d",
            "Int8Linear",
            "Int8Linear",
        ]

    def test_weight_correction_changes_codes(self) -> None:
        plain, corrected = (
            quantization.fit(
                M3(),
                PostTrainingQuantConfig(
                    recipes={"weight_correction": on}, op_type_dict={".*": {"weight": {"bits": 4}}}
                ),
                calib_dataloader=self.data,
            )
            for on in (False, True)
        )
        weight = M3().fc1.weight
        before, after = (model.fc1.weight.mean(1) - weight.mean(1) for model in (plain, corrected))
        assert after.abs().mean() < before.abs().mean()

    def test_a_reduced_range_takes_seven_bits(self) -> None:
        quantized = quantization.fit(M3(), PostTrainingQuantConfig(reduce_range=True), calib_dataloader=self.data)
        assert quantized.fc1.scheme == "w8a7-static"

    @pytest.mark.parametrize("options", [{"op_type_dict": {"Conv": FP32}}, {"op_name_dict": {"fc": FP32}}])
    def test_a_pattern_that_matches_no_module_is_an_error(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="matches no module"):
            quantization.fit(M3(), PostTrainingQuantConfig(**options), calib_dataloader=self.data)

    def test_a_device_where_the_model_is_not(self) -> None:
        with pytest.raises(ConfigError, match="device='gpu'"):
            quantization.fit(M3(), PostTrainingQuantConfig(device="gpu"), calib_dataloader=self.data)


class ZooCV(nn.Module):
    """``zoo_cv`` of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.pool = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)
        self.tconv, self.hs = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Hardswish()
        self.gap, self.drop, self.ln = nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.LayerNorm(8)
        self.fc1, self.gelu, self.sig = nn.Linear(8, 16), nn.GELU(), nn.Sigmoid()
        self.fc2, self.bn1, self.elu, self.sm = nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ELU(), nn.Softmax(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = self.hs(self.tconv(self.pool(x + self.conv2(x))))
        x = self.ln(self.drop(self.gap(x).flatten(1)))
        return self.sm(self.elu(self.bn1(self.fc2(self.sig(self.gelu(self.fc1(x)))))))


class ZooNLP(nn.Module):
    """``zoo_nlp`` of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.rnn, self.gru = nn.Embedding(10, 8), nn.LSTM(8, 8), nn.GRU(8, 8)
        self.ln, self.fc = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.ln(self.gru(self.rnn(self.emb(x))[0])[0]))


ZOO = {
    "zoo_cv": (ZooCV, torch.randn(2, 3, 8, 8)),
    "zoo_nlp": (ZooNLP, torch.randint(0, 10, (3, 2))),
}
COVERED = {"Linear", "Conv2d", "ConvTranspose2d", "Embedding"}


@pytest.mark.parametrize("case", VECTORS["default_coverage"]["zoo"])
def test_default_coverage(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, approach, precision = case.split("/")
    monkeypatch.setenv("FORCE_BF16", "1")
    build, inputs = ZOO[family]
    config = PostTrainingQuantConfig(approach=approach, excluded_precisions=["bf16"] if precision == "nobf16" else [])
    quantized = quantization.fit(build().eval(), config, calib_dataloader=[inputs])
    ops = VECTORS["default_coverage"]["zoo"][case]["ops"]
    expected = {
        name
        for name, kind in (op.split("|") for op, label in ops.items() if label.startswith("int8"))
        if kind in COVERED
    }
    int8 = {name for name, module in quantized.named_modules() if isinstance(module, Int8Module)}
    assert int8 == expected
    assert quantized(inputs).isfinite().all()
    assert quantized(inputs).dtype == torch.float32


def test_recurrent_layers_compute_in_bfloat16_where_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_BF16", "1")
    quantized = quantization.fit(ZooNLP(), PostTrainingQuantConfig(), calib_dataloader=[ZOO["zoo_nlp"][1]])
    rows = {row.name: row.scheme for row in quantized.report().modules}
    assert rows == {"emb": "w8-per-row", "rnn": "bfloat16", "gru": "bfloat16", "fc": "w8a8-static"}


def test_a_rule_for_bfloat16_on_a_processor_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inc_torch.precision.has_bfloat16", lambda _: False)
    config = PostTrainingQuantConfig(op_name_dict={"fc2": {"weight": {"dtype": "bf16"}}})
    with pytest.warns(InexactWarning, match="'fc2' was to compute in bfloat16, which this processor lacks"):
        quantized = quantization.fit(M3(), config, calib_dataloader=[torch.randn(8, 3, 8, 8)])
    assert quantized.fc2.weight.dtype == torch.float32
