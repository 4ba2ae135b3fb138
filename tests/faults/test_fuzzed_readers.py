"""Readers take any values, and whatever is wrong with them is one of our own errors."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import inc_torch
from inc_torch import PostTrainingQuantConfig, QuantizationAwareTrainingConfig, WeightPruningConfig
from inc_torch.conf import read_conf
from inc_torch.config import (
    BenchmarkConfig,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    MixedPrecisionConfig,
    read_configs,
)
from inc_torch.config._base import Config
from inc_torch.core.errors import IncTorchError
from inc_torch.core.plain_yaml import read_text
from inc_torch.core.report import CompressionReport
from inc_torch.distillers.cached_logits import CachedLogits
from inc_torch.export import load, save
from inc_torch.model import inspect_saved
from inc_torch.tuning import TuningResult
from tests.faults.mutations import JUNK, VALUES, dropped, mutations, places, put
from tests.faults.subjects import run_pipeline, write_logits
from tests.unit.tuning.test_result import result as tuning_result

FEW = 200
MANY = 5_000


def fuzzed(test):
    """The test with 200 examples, and a slow one with 5,000."""
    return pytest.mark.parametrize(
        "examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=lambda number: f"{number} examples"
    )(test)


def only_our_errors(read, values, examples):
    """Run ``read`` on that many drawn values; anything but a result or an error of ours rises."""

    @settings(max_examples=examples)
    @given(values)
    def check(value: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(value)
            except IncTorchError as error:
                assert str(error)

    check()


CONFIGS = {
    "pruning": WeightPruningConfig(
        pruning_configs=[{"op_names": ["a"], "target_sparsity": 0.5}], parameters={"reg_coeff": 1}
    ),
    "quantization": PostTrainingQuantConfig(
        op_type_dict={"Linear": {"weight": {"dtype": ["int8"], "algorithm": "minmax"}}}, recipes={"smooth_quant": True}
    ),
    "training": QuantizationAwareTrainingConfig(op_name_dict={"a": {"weight": {"dtype": ["fp32"]}}}),
    "mixed precision": MixedPrecisionConfig(),
    "distillation": DistillationConfig(criterion=KnowledgeDistillationLossConfig()),
    "benchmark": BenchmarkConfig(),
}


@fuzzed
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_configs_of_plain_values(config, examples):
    only_our_errors(Config.from_dict, mutations(config.to_dict()), examples)


@fuzzed
@pytest.mark.parametrize("option", ["op_type_dict", "op_name_dict"])
def test_rules_of_operations(option, examples):
    rule = {"weight": {"dtype": ["int8"], "bits": [8], "granularity": "per_channel", "scheme": ["sym"]}}
    rules = {"Linear": {**rule, "activation": {"dtype": "uint8", "algorithm": ["minmax", "kl"]}}}

    def read(value: object) -> None:
        for approach in ("static", "weight_only"):
            PostTrainingQuantConfig(approach=approach, **{option: value})

    only_our_errors(read, mutations(rules) | VALUES, examples)


@fuzzed
def test_files_of_configs(examples, tmp_path):
    whole = {"WeightPruningConfig": {"target_sparsity": 0.8, "pattern": "4x1"}, "QuantizationAwareTrainingConfig": None}
    path = tmp_path / "conf.yaml"

    def read(value: object) -> None:
        path.write_text(yaml.safe_dump(value))
        read_configs(path)

    only_our_errors(read, mutations(whole), examples)


SECTIONS = {
    "quantization": {
        "model": {"name": "net", "framework": "pytorch"},
        "quantization": {"approach": "post_training_static_quant", "op_wise": {"a": {"weight": {"dtype": ["fp32"]}}}},
        "tuning": {"accuracy_criterion": {"relative": 0.01}, "exit_policy": {"max_trials": 3}},
    },
    "pruning": {
        "model": {"name": "net", "framework": "pytorch"},
        "pruning": {
            "approach": {
                "weight_compression": {
                    "initial_sparsity": 0.0,
                    "target_sparsity": 0.97,
                    "pruners": [{"names": ["a"], "prune_type": "basic_magnitude", "update_frequency": 1}],
                }
            }
        },
    },
}


@fuzzed
@pytest.mark.parametrize("whole", SECTIONS.values(), ids=SECTIONS)
def test_files_of_1x(whole, examples, tmp_path):
    path = tmp_path / "conf.yaml"

    def read(value: object) -> None:
        path.write_text(yaml.safe_dump(value))
        read_conf(path).translate()

    only_our_errors(read, mutations(whole), examples)


@fuzzed
def test_any_text_as_yaml(examples):
    words = [*"{}[]:-,&*!|>%@'?#\n ", "a", "1", ": ", "- ", "\n  ", "<<: ", "&a", "*a", "!!int ", "0x", '"']
    texts = st.text(max_size=40) | st.lists(st.sampled_from(words)).map("".join)
    only_our_errors(lambda text: read_text(text, "a.yaml"), texts, examples)


def int8_directory(place, **options):
    torch_model = Net()
    conf = PostTrainingQuantConfig(**options)
    save(inc_torch.quantization.fit(torch_model, conf, calib_dataloader=batches()), place)


class Net(nn.Module):
    """Traces, so that its description has a graph; ties two weights; one layer computes in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.thin = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight

    def forward(self, image):
        seen = self.thin(self.norm(self.first(image)).relu()).relu().mean((2, 3))
        return self.other(self.one(seen) + seen)


def batches():
    return [torch.ones(2, 1, 8, 8)] * 2


@fuzzed
@pytest.mark.parametrize("approach", ["static", "weight_only"])
def test_descriptions_of_saved_models(approach, examples, tmp_path):
    word = {"weight": {"dtype": "bf16"}, "activation": {"dtype": "bf16"}}
    int8_directory(tmp_path, approach=approach, **({"op_name_dict": {"thin": word}} if approach == "static" else {}))
    path = tmp_path / "compression.json"

    def read(value: object) -> None:
        path.write_text(json.dumps(value))
        inspect_saved(tmp_path)
        load(tmp_path, model=Net())

    only_our_errors(read, mutations(json.loads(path.read_text())), examples)


@fuzzed
def test_results_of_searches(examples):
    only_our_errors(TuningResult.from_dict, mutations(tuning_result().to_dict()), examples)


@fuzzed
def test_reports(examples):
    whole = CompressionReport.measure(Net()).to_dict()

    def read(value: object) -> None:
        if isinstance(value, dict):  # whoever reads a file looks at that first
            CompressionReport.from_dict(value)

    only_our_errors(read, mutations(whole), examples)


@pytest.mark.parametrize("name", ["pipeline.json", "1-prune/stage.json", "1-prune/report.json"])
def test_every_value_in_the_files_of_a_pipeline(name, tmp_path):
    run_pipeline(tmp_path, "first")
    path = tmp_path / "run-first" / name
    whole = json.loads(path.read_text())
    refused = 0
    for place in places(whole):
        for value in (None, -1, "x", [], {"x": 1}):
            path.write_text(json.dumps(put(whole, place, value)))
            try:
                run_pipeline(tmp_path, "first")
            except IncTorchError:
                refused += 1
    assert refused > len(list(places(whole)))


def test_every_value_in_the_index_of_teacher_logits(tmp_path):
    write_logits(tmp_path, "first")
    path = tmp_path / "logits-first" / "index.json"
    whole = json.loads(path.read_text())
    for place in places(whole):
        for changed in [*(put(whole, place, value) for value in JUNK), *([dropped(whole, place)] if place else [])]:
            path.write_text(json.dumps(changed))
            try:
                CachedLogits(tmp_path / "logits-first")[0]
            except IncTorchError:
                continue
            taken = {"classes": 0, "is_sequence": False}  # any number, either answer
            assert {**changed, **taken} == {**whole, **taken}
