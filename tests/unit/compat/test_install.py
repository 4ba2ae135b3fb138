"""INC's names give this package's modules, and configurations are lenient, from `install` to `uninstall`."""

from __future__ import annotations

import copy
import importlib
import sys
import types
import warnings

import pytest

import inc_torch
from inc_torch import PostTrainingQuantConfig, WeightPruningConfig, compat
from inc_torch.config import FrozenConfigError
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, NoCounterpartError


@pytest.fixture
def installed():
    compat.install()
    yield
    compat.uninstall()


NAMES = [
    "benchmark",
    "compression.pruner",
    "compression.pruner.wanda",
    "config",
    "data",
    "metric",
    "mix_precision",
    "model",
    "objective",
    "quantization",
    "training",
    "utils.constant",
    "utils.load_huggingface",
    "utils.logger",
    "utils.pytorch",
]
IMPORTABLE = {
    "": "DistillationConfig PostTrainingQuantConfig WeightPruningConfig QuantizationAwareTrainingConfig "
    "MixedPrecisionConfig Metric set_random_seed set_workspace set_resume_from set_tensorboard options quantization "
    "mix_precision benchmark training",
    "config": "PostTrainingQuantConfig QuantizationAwareTrainingConfig WeightPruningConfig DistillationConfig "
    "KnowledgeDistillationLossConfig IntermediateLayersKnowledgeDistillationLossConfig "
    "SelfKnowledgeDistillationLossConfig MixedPrecisionConfig BenchmarkConfig TuningCriterion AccuracyCriterion "
    "Options options Torch2ONNXConfig",
    "training": "prepare_compression CompressionManager CallBacks fit prepare_pruning WeightPruningConfig "
    "DistillationConfig QuantizationAwareTrainingConfig",
    "benchmark": "fit benchmark_with_raw_cmd",
    "mix_precision": "fit",
    "quantization": "fit",
    "metric": "METRICS Metric BaseMetric metric_registry register_customer_metric",
    "data": "DataLoader DATALOADERS Datasets Dataset IterableDataset dataset_registry TRANSFORMS BaseTransform "
    "transform_registry Postprocess FILTERS Filter filter_registry check_dataloader",
    "model": "Model",
    "objective": "objective_custom_registry",
    "compression.pruner": "model_slim parse_auto_slim_config save prepare_pruning",
    "compression.pruner.wanda": "prune_wanda",
    "utils.load_huggingface": "save_for_huggingface_upstream OptimizedModel export_compressed_model",
    "utils.pytorch": "load recover_model_from_json",
}


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_the_same_objects_and_stay_as_they_were(installed, name):
    ours = importlib.import_module(f"inc_torch.{name}")
    spec = ours.__spec__
    theirs = importlib.import_module(f"neural_compressor.{name}")
    assert theirs is ours
    assert ours.__name__ == f"inc_torch.{name}"
    assert ours.__spec__ is spec
    assert spec.name == ours.__name__


@pytest.mark.parametrize("name", IMPORTABLE)
def test_every_documented_name_can_be_imported(installed, name):
    module = importlib.import_module(f"neural_compressor.{name}".rstrip("."))
    for attribute in IMPORTABLE[name].split():
        assert hasattr(module, attribute), attribute


def test_the_top_and_attributes_of_it(installed):
    import neural_compressor

    assert neural_compressor is inc_torch
    assert neural_compressor.data is inc_torch.data
    from neural_compressor.version import __version__

    assert __version__ == inc_torch.__version__


@pytest.mark.parametrize("name", sorted(compat.known_names()))
def test_all_that_is_listed_can_be_imported(installed, name):
    module = importlib.import_module(f"neural_compressor.{name}")
    assert module.__name__.partition(".")[0] == "inc_torch"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("utils.pytorh", "Near it are neural_compressor.utils.pytorch, "),
        (
            "adaptor.torch_utils",
            "neural_compressor.adaptor has no counterpart in inc_torch. Adaptors are chosen by the",
        ),
        ("torch.quantization", "That is the API of INC 3.X"),
        ("zzz", "There are neural_compressor.benchmark, "),
        ("core", "neural_compressor.core has no counterpart"),
        ("data._loader", "neural_compressor.data._loader has no counterpart"),
        ("deep.metric", "neural_compressor.deep has no counterpart"),
    ],
)
def test_what_has_no_counterpart_is_told(installed, name, told):
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(f"neural_compressor.{name}")
    assert isinstance(caught.value, NoCounterpartError)
    assert told in str(caught.value)
    assert caught.value.name.startswith("neural_compressor.")


def test_uninstalling_takes_everything_back():
    compat.install()
    compat.install()
    assert compat.is_installed()
    assert sum(type(finder).__name__ == "_Finder" for finder in sys.meta_path) == 1
    importlib.import_module("neural_compressor.config")
    experimental = importlib.import_module("neural_compressor.experimental")
    assert importlib.import_module("neural_compressor.experimental.data") is experimental.data
    compat.uninstall()
    compat.uninstall()
    assert not hasattr(experimental, "data")
    assert not compat.is_installed()
    assert not [name for name in sys.modules if name.startswith("neural_compressor")]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("neural_compressor")
    assert inc_torch.config.PostTrainingQuantConfig is PostTrainingQuantConfig
    with pytest.raises(ConfigTypeError):
        PostTrainingQuantConfig(no_such_option=1)


def test_the_real_one_is_not_pushed_aside(monkeypatch, tmp_path):
    (tmp_path / "neural_compressor").mkdir()
    (tmp_path / "neural_compressor" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"itself is installed \(.*\), so 'neural_compressor' could be either"):
        compat.install()
    assert not compat.is_installed()
    compat.install(replace=True)
    assert importlib.import_module("neural_compressor") is inc_torch
    compat.uninstall()
    monkeypatch.setitem(sys.modules, "neural_compressor", types.ModuleType("neural_compressor"))
    with pytest.raises(ConfigError, match=r"is imported already .* before the first import"):
        compat.install(replace=True)


class TestLeniency:
    def test_unknown_options_are_dropped_with_one_warning_each(self, installed):
        with pytest.warns(InexactWarning, match=r"has no option 'approch', which is dropped. Did you mean 'approach'?"):
            assert PostTrainingQuantConfig(approch="dynamic") == PostTrainingQuantConfig()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            PostTrainingQuantConfig(approch="static")

    def test_assigning_checks_and_works_with_one_warning_each(self, installed):
        config = WeightPruningConfig()
        with pytest.warns(
            InexactWarning, match=r"WeightPruningConfig.target_sparsity is assigned to.*replace\(target_sp"
        ):
            config.target_sparsity = 0.5
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config.target_sparsity = 0.7
        assert config.target_sparsity == 0.7
        assert copy.deepcopy(config) == config == WeightPruningConfig(target_sparsity=0.7)
        with pytest.raises(ConfigError, match=r"WeightPruningConfig.target_sparsity=2"):
            config.target_sparsity = 2
        assert config.target_sparsity == 0.7
        with pytest.warns(InexactWarning, match=r"has no option 'target_sparcity'.* The assignment is dropped."):
            config.target_sparcity = 0.1
        assert not hasattr(config, "target_sparcity")

    def test_options_that_are_folded_into_others_can_be_assigned(self, installed):
        config = PostTrainingQuantConfig()
        with pytest.warns(InexactWarning):
            config.max_trials = 7
        assert config.tuning_criterion.max_trials == 7

    def test_without_it_configs_are_strict(self):
        with pytest.raises(FrozenConfigError, match="Make a changed copy"):
            PostTrainingQuantConfig().approach = "dynamic"
