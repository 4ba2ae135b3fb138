"""What a file says, in the configurations of today."""

from __future__ import annotations

import pytest

from inc_torch import (
    BenchmarkConfig,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    SelfKnowledgeDistillationLossConfig,
    WeightPruningConfig,
)
from inc_torch.conf import read_conf
from inc_torch.conf._evaluation import metric_of
from inc_torch.conf.config import DistillationConf, MixedPrecisionConf, Pruner, PruningConf, QuantConf
from inc_torch.core.errors import ConfigError
from inc_torch.pruners import REGULARIZERS


def only(source) -> object:
    (config,) = read_conf(source).translate().configs
    return config


def pruning(**section) -> WeightPruningConfig:
    return only({"pruning": {"approach": section}})


# ------------------------------------------------------------------------------ quantization


@pytest.mark.parametrize(
    ("approach", "expected"),
    [
        ("post_training_static_quant", PostTrainingQuantConfig()),
        ("post_training_dynamic_quant", PostTrainingQuantConfig(approach="dynamic")),
        ("post_training_auto_quant", PostTrainingQuantConfig(approach="auto")),
        ("dynamic", PostTrainingQuantConfig(approach="dynamic")),
        ("quant_aware_training", QuantizationAwareTrainingConfig()),
    ],
)
def test_approaches(approach, expected):
    assert only({"quantization": {"approach": approach}}) == expected


def test_rules_of_all_types_and_names():
    float_rule = {"weight": {"dtype": "fp32"}, "activation": {"dtype": ["fp32"]}}
    config = only(
        {
            "quantization": {
                "model_wise": {"activation": {"algorithm": "minmax", "compute_dtype": "uint8"}, "weight": {"bit": 7.0}},
                "optype_wise": {"Linear": {"activation": {"algorithm": ["kl", "minmax"]}}},
                "op_wise": {"head": float_rule},
            }
        }
    )
    assert config.op_type_dict == {
        ".*": {"activation": {"algorithm": ("minmax",)}},
        "Linear": {"activation": {"algorithm": ("kl", "minmax")}},
    }
    assert config.op_name_dict == {"head": {"weight": {"dtype": ("fp32",)}, "activation": {"dtype": ("fp32",)}}}


def test_everything_around_it():
    config = only(
        {
            "model": {"framework": "PyTorch_IPEX"},
            "use_bf16": False,
            "quantization": {
                "calibration": {"sampling_size": "1000, 2000"},
                "recipes": {"first_conv_or_matmul_quantization": False},
                "quant_level": 0,
            },
            "tuning": {
                "strategy": {"name": "mse_v2", "confidence_batches": 3},
                "accuracy_criterion": {"relative": "2%", "higher_is_better": False},
                "exit_policy": {"timeout": 60, "max_trials": 7},
                "multi_objectives": {"objective": "accuracy, performance", "weight": "0.8, 0.2"},
            },
        }
    )
    assert config.backend == "ipex"
    assert config.excluded_precisions == ("bf16",)
    assert config.calibration_sampling_size == (1000, 2000)
    assert config.recipes.first_conv_or_matmul_quantization is False
    assert config.quant_level == 0
    assert (config.accuracy_criterion.relative, config.accuracy_criterion.higher_is_better) == (0.02, False)
    criterion = config.tuning_criterion
    assert (criterion.strategy, criterion.strategy_kwargs) == ("mse_v2", {"confidence_batches": 3})
    assert (criterion.timeout, criterion.max_trials) == (60.0, 7)
    assert criterion.objective == {"objective": ("accuracy", "performance"), "weight": (0.8, 0.2)}


def test_two_kinds_of_loss_are_refused():
    conf = QuantConf({"tuning": {"accuracy_criterion": {"relative": 0.01, "absolute": 1}}})
    with pytest.raises(ConfigError, match=r"QuantConf: .*relative=0\.01 and absolute=1\.0: a tolerable loss is one"):
        conf.translate()


# ------------------------------------------------------------------------------ pruning


def test_the_defaults_of_1x():
    (config,) = PruningConf().translate().configs
    assert config == WeightPruningConfig(
        target_sparsity=0.97,
        pruning_type="magnitude",
        pattern="1x1",
        end_step=4,
        pruning_scope="local",
        sparsity_decay_type="linear",
        clock="epoch",
    )


def test_pruners_take_from_the_section_what_they_do_not_say():
    config = pruning(
        weight_compression={
            "target_sparsity": 0.8,
            "end_epoch": 3,
            "excluded_names": ["head.weight"],
            "pruners": [
                Pruner(names=["layer.0.fc.weight"], start_epoch=1, initial_sparsity=0.2),
                {"prune_type": "pattern_lock", "names": "layer.*.out.weight"},
                {"prune_type": "group_lasso", "parameters": {"alpha": 0.05}, "pattern": "tile_pattern_4x1"},
            ],
        }
    )
    excluded = ("^head$",)
    first, second, third = config.to_specs()
    assert (first.op_names, first.excluded_op_names) == (("^layer\\.0\\.fc$",), excluded)
    assert (first.target, first.initial, first.start, first.end, first.counts_epochs) == (0.8, 0.2, 1, 3, True)
    assert second.locks_zeros
    assert (second.op_names, second.counts_epochs) == (("^layer\\.[^.]+\\.out$",), False)
    assert (third.pattern_text, third.regularizer) == ("4x1", REGULARIZERS.get("group_lasso")(0.05))


def test_steps_keep_their_meaning():
    config = pruning(
        weight_compression_pytorch={
            "target_sparsity": 0.5,
            "start_step": 10,
            "end_step": 100,
            "update_frequency_on_step": 5,
            "prune_type": "snip",
            "prune_domain": "local",
            "sparsity_decay_type": "cube",
            "names": ["layer1.*"],
            "prune_layer_type": ["Linear"],
            "pattern": "tile_pattern_1x2",
        }
    )
    assert config == WeightPruningConfig(
        target_sparsity=0.5,
        start_step=10,
        end_step=100,
        pruning_frequency=5,
        pruning_type="snip",
        pruning_scope="local",
        sparsity_decay_type="cube",
        op_names=["layer1.*"],
        pruning_op_types=["Linear"],
        pattern="1x2",
    )


def test_v2_has_the_words_of_2x():
    config = pruning(
        weight_compression_v2={
            "target_sparsity": 0.5,
            "end_step": 4,
            "pruners": [{"op_names": ["a"], "pattern": "2:4"}],
        }
    )
    assert config == WeightPruningConfig([{"op_names": ["a"], "pattern": "2:4"}], target_sparsity=0.5, end_step=4)


def test_types_of_the_other_dialect_are_refused():
    with pytest.raises(ConfigError, match=r"prune_type='snip' of 'weight_compression': expected one of basic_magni"):
        pruning(weight_compression={"prune_type": "snip"})
    with pytest.raises(ConfigError, match=r"pruning\.approach has weight_compression and weight_compression_v2"):
        pruning(weight_compression={"end_epoch": 1}, weight_compression_v2={"end_step": 1})


@pytest.mark.parametrize(("frequency", "expected", "notes"), [(0.1, 1, 0), (1.5, 2, 1), (2.0, 2, 0)])
def test_frequencies_are_whole_epochs(frequency, expected, notes):
    section = {"weight_compression": {"update_frequency": frequency}}
    translation = read_conf({"pruning": {"approach": section}}).translate()
    assert translation.configs[0].pruning_frequency == expected
    assert len(translation.notes) == notes


def test_sensitivity_is_told_to_be_another():
    entry = {"prune_type": "gradient_sensitivity", "names": ["a.weight"]}
    heads = entry | {"parameters": {"target": 8, "stride": 64}}
    translation = read_conf({"pruning": {"approach": {"weight_compression": {"pruners": [entry, heads]}}}}).translate()
    assert [spec.pattern_text for spec in translation.configs[0].to_specs()] == ["1x1", "mha"]
    assert ["smoothed" in note.text or "masks instead of cuts" in note.text for note in translation.notes] == [True] * 2


# ------------------------------------------------------------------------------ the others


def test_distillation():
    assert DistillationConf().translate().configs == (
        DistillationConfig(criterion=KnowledgeDistillationLossConfig(loss_types=["CE", "KL"])),
    )
    mappings = [[["a", "b"]]]
    config = only({"distillation": {"train": {"criterion": {"SelfKnowledgeDistillationLoss": {
        "layer_mappings": mappings, "temperature": 3, "loss_types": ["L2"], "loss_weights": [0.5]}}}}})  # fmt: skip
    assert isinstance(config.criterion, SelfKnowledgeDistillationLossConfig)
    assert (config.criterion.temperature, config.criterion.loss_weights) == (3.0, (0.5,))


def test_a_criterion_without_mappings_is_refused():
    with pytest.raises(ConfigError, match=r"IntermediateLayersKnowledgeDistillationLoss has no 'layer_mappings'"):
        only({"distillation": {"train": {"criterion": {"IntermediateLayersKnowledgeDistillationLoss": {}}}}})


def test_mixed_precision():
    assert MixedPrecisionConf().translate().configs == (MixedPrecisionConfig(),)
    assert only({"mixed_precision": {"precisions": "bf16,fp16"}}) == MixedPrecisionConfig(precisions=["bf16", "fp16"])
    rule = {"weight": {"dtype": ["fp32"]}}
    config = only({"graph_optimization": {"precisions": ["bf16"], "op_wise": {"head": rule}}})
    assert config.op_name_dict == {"head": {"weight": {"dtype": ("fp32",)}}}
    assert read_conf({"mixed_precision": {"precisions": "fp32"}}).translate().configs == ()


def test_benchmark():
    settings = {"cores_per_instance": 1, "num_of_instance": 2, "intra_num_of_threads": 1, "kmp_blocktime": 1}
    section = {"performance": {"warmup": 3, "iteration": 9, "configs": settings}}
    translation = read_conf({"evaluation": section}).translate()
    expected = BenchmarkConfig(warmup=3, iteration=9, cores_per_instance=1, num_of_instance=2, intra_num_of_threads=1)
    assert translation.configs == (expected,)
    assert [note.text.split()[0] for note in translation.notes] == ["evaluation.performance.configs.kmp_blocktime"]


def test_metrics():
    def metric(section):
        return metric_of(read_conf({"evaluation": {"accuracy": section}}).usr_cfg.evaluation)

    assert metric({"metric": {"topk": 3}}) == {"topk": 3}
    assert metric({"metric": {"Accuracy": None}}) == {"Accuracy": None}
    several = {"topk": 1, "MSE": {"compare_label": False}, "weight": "0.5, 0.5", "higher_is_better": [True, False]}
    assert metric({"multi_metrics": several}) == several | {"weight": [0.5, 0.5]}
    with pytest.raises(ConfigError, match="metric and multi_metrics"):
        metric({"metric": {"topk": 1}, "multi_metrics": {"MSE": None}})


def test_the_name_none_of_a_reduction_is_told(tmp_path):
    path = tmp_path / "qat.yaml"
    path.write_text("pruning:\n  train:\n    criterion:\n      CrossEntropyLoss:\n        reduction: None\n")
    conf = read_conf(path)
    assert conf.usr_cfg.pruning.train.criterion.CrossEntropyLoss.reduction == "mean"
    assert str(conf.translate().notes[0]).startswith(
        "line 5: pruning.train.criterion.CrossEntropyLoss.reduction counts as 'mean'"
    )
