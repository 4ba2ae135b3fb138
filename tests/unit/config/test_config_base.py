"""What all configurations share."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inc_torch.config import (
    AccuracyCriterion,
    Config,
    DistillationConfig,
    FrozenConfigError,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    WeightPruningConfig,
)
from inc_torch.core.errors import ConfigError, ConfigTypeError, IncTorchError

ALL = [
    AccuracyCriterion,
    DistillationConfig,
    KnowledgeDistillationLossConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    WeightPruningConfig,
]
EXAMPLES = [
    AccuracyCriterion(criterion="absolute", tolerable_loss=1),
    DistillationConfig(criterion=KnowledgeDistillationLossConfig(4), optimizer="Adam"),
    KnowledgeDistillationLossConfig(2, ["CE", "KL"], [0.25, 0.75]),
    QuantizationAwareTrainingConfig(op_type_dict={"Linear": {"weight": {"dtype": "fp32"}}}, timeout=3),
    TuningCriterion("random", {"seed": 3}, objective=["performance", "modelsize"]),
    WeightPruningConfig([{"op_names": "a", "parameters": {"reg_coeff": "0.5"}}], 0.5, excluded_op_names=["b"]),
]
by_class = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)


@by_class
def test_assignment_is_refused(example):
    name = next(iter(example.to_dict()["data"]))
    before = example.to_dict()
    with pytest.raises(FrozenConfigError):
        setattr(example, name, None)
    with pytest.raises(FrozenConfigError, match="is read-only"):
        delattr(example, name)
    assert example.to_dict() == before


def test_assignment_shows_the_line_to_write():
    config = WeightPruningConfig()
    with pytest.raises(FrozenConfigError) as caught:
        config.target_sparsity = 0.5
    assert str(caught.value) == (
        "WeightPruningConfig is read-only. Make a changed copy: config = config.replace(target_sparsity=0.5)."
    )
    assert isinstance(caught.value, (IncTorchError, FrozenInstanceError))
    assert isinstance(caught.value, AttributeError)
    assert config.replace(target_sparsity=0.5) == WeightPruningConfig(target_sparsity=0.5)


def test_assignment_to_an_unknown_name_suggests_the_nearest():
    with pytest.raises(FrozenConfigError, match=r"has no option 'target_sparsty'\. Did you mean 'target_sparsity'\?"):
        WeightPruningConfig().target_sparsty = 0.5


def test_assignment_to_an_old_spelling_shows_the_line_too():
    with pytest.raises(FrozenConfigError, match=r"config = config\.replace\(timeout=5\)"):
        QuantizationAwareTrainingConfig().timeout = 5


def test_a_view_cannot_be_changed():
    view = WeightPruningConfig().weight_compression
    with pytest.raises(FrozenConfigError, match=r"config\.replace\(target_sparsity=0\.5\)"):
        view.target_sparsity = 0.5
    with pytest.raises(FrozenConfigError, match="'pattern' cannot be taken out"):
        del view.pattern
    with pytest.raises(TypeError):
        view["target_sparsity"] = 0.5


@pytest.mark.parametrize("kind", ALL)
def test_an_unknown_keyword_is_a_type_error_with_a_suggestion(kind):
    name = next(iter(kind().to_dict()["data"]))
    with pytest.raises(ConfigTypeError) as caught:
        kind(**{name + "s_": 1})
    assert isinstance(caught.value, TypeError)
    assert str(caught.value) == f"{kind.__name__} has no option {name + 's_'!r}. Did you mean {name!r}?"


def test_an_unknown_keyword_far_from_all_lists_them():
    with pytest.raises(ConfigTypeError) as caught:
        AccuracyCriterion(zzz=1)
    assert str(caught.value) == (
        "AccuracyCriterion has no option 'zzz'. Options: higher_is_better, criterion, tolerable_loss."
    )


@by_class
def test_replace_checks_like_a_new_one(example):
    assert example.replace() == example
    with pytest.raises(ConfigTypeError, match="has no option 'no_such_option'"):
        example.replace(no_such_option=1)


@by_class
def test_copies_are_equal(example):
    assert copy.deepcopy(example) == example
    assert pickle.loads(pickle.dumps(example)) == example
    assert hash(copy.copy(example)) == hash(example)


@by_class
def test_repr_is_short_and_builds_an_equal_one(example):
    names = {kind.__name__: kind for kind in ALL}
    assert eval(repr(example), names) == example
    assert repr(type(example)()) == f"{type(example).__name__}()"


def test_repr_shows_only_what_differs():
    assert repr(WeightPruningConfig(target_sparsity=0.5, pattern="1x1")) == (
        "WeightPruningConfig(target_sparsity=0.5, pattern='1x1')"
    )


@by_class
def test_round_trip_through_json(example):
    content = json.loads(json.dumps(example.to_dict()))
    assert content["type"] == type(example).__name__
    assert content["version"] == 1
    assert type(example).from_dict(content) == Config.from_dict(content) == example


names = st.text("abc.*", max_size=4).filter(lambda text: "**" not in text and not text.startswith("*"))
ratios = st.floats(0, 1, exclude_max=True)
local_options = {
    "target_sparsity": ratios,
    "pruning_type": st.sampled_from(["magnitude", "gradient", "snip", "snip_momentum"]),
    "pattern": st.sampled_from(["4x1", "1x1", "channelx1", "1xchannel", "tile_pattern_2x2"]),
    "op_names": st.lists(names, max_size=2),
    "excluded_op_names": st.lists(names, max_size=2),
    "start_step": st.integers(0, 3),
    "end_step": st.integers(3, 9),
    "pruning_scope": st.sampled_from(["global", "local"]),
    "pruning_frequency": st.integers(1, 9),
    "min_sparsity_ratio_per_op": st.floats(0, 0.5),
    "max_sparsity_ratio_per_op": st.floats(0.5, 1, exclude_max=True),
    "sparsity_decay_type": st.sampled_from(["exp", "cos", "linear", "cube"]),
    "pruning_op_types": st.lists(st.sampled_from(["Conv", "Linear"]), max_size=2),
    "criterion_reduce_type": st.sampled_from(["mean", "sum", "max"]),
    "reg_coeff": st.floats(0, 10),
    "lock_init_sparsity": st.booleans(),
    "resume_from_pruned_checkpoint": st.booleans(),
}
steps = {"start_step": st.just(0), "end_step": st.integers(3, 9)}
local = st.fixed_dictionaries({}, optional=local_options)
shared_options = {name: values for name, values in local_options.items() if name not in steps}
pruning = st.fixed_dictionaries(steps, optional=shared_options | {"pruning_configs": st.lists(local, max_size=2)})


@given(pruning)
def test_any_pruning_config_survives_the_round_trip(options):
    config = WeightPruningConfig(**options)
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert isinstance(again, WeightPruningConfig)
    assert again.to_specs() == config.to_specs()


@given(st.floats(1e-3, 100), st.sampled_from(["CE", "MSE"]), st.sampled_from(["CE", "KL", "MSE"]), st.floats(0, 1))
def test_any_distillation_loss_survives_the_round_trip(temperature, hard, soft, weight):
    config = KnowledgeDistillationLossConfig(temperature, [hard, soft], [weight, 1 - weight])
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


class TestFromDict:
    content = AccuracyCriterion().to_dict()

    def test_an_unknown_class(self):
        with pytest.raises(ConfigError, match=r"from_dict\['type'\]='AccuracyCriterium'.*Did you mean 'AccuracyCri"):
            Config.from_dict(self.content | {"type": "AccuracyCriterium"})

    def test_another_class(self):
        with pytest.raises(ConfigError, match=r"expected 'WeightPruningConfig'\. Use AccuracyCriterion\.from_dict\."):
            WeightPruningConfig.from_dict(self.content)

    @pytest.mark.parametrize("version", [2, 0, "1", None])
    def test_another_version(self, version):
        with pytest.raises(ConfigError, match=rf"\['version'\]={version!r}: expected a version from 1 to 1\. Newer"):
            Config.from_dict(self.content | {"version": version})

    def test_an_unknown_key_of_the_envelope(self):
        with pytest.raises(ConfigTypeError, match=r"AccuracyCriterion\.from_dict has no option 'dat'\. Did you mean"):
            AccuracyCriterion.from_dict({"type": "AccuracyCriterion", "version": 1, "dat": {}})

    def test_an_unknown_option(self):
        with pytest.raises(ConfigTypeError, match=r"has no option 'criterium'\. Did you mean 'criterion'\?"):
            Config.from_dict(self.content | {"data": {"criterium": "relative"}})

    @pytest.mark.parametrize("content", [None, [], "x"])
    def test_no_dict(self, content):
        with pytest.raises(ConfigTypeError, match=r"Config\.from_dict=.*expected a dict made by to_dict\(\)"):
            Config.from_dict(content)

    def test_no_data(self):
        with pytest.raises(ConfigTypeError, match=r"from_dict\['data'\]=None: expected a dict, not a NoneType\."):
            Config.from_dict({"type": "AccuracyCriterion", "version": 1})


def test_what_json_cannot_hold_is_refused_by_name():
    criterion = TuningCriterion("hawq_v2", {"hawq_v2_loss": max})
    with pytest.raises(ConfigTypeError, match=r"TuningCriterion\.strategy_kwargs\['hawq_v2_loss'\]=.* Take it out"):
        criterion.to_dict()
