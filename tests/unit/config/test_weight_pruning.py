from __future__ import annotations

import inspect

import numpy as np
import pytest

from inc_torch.config import WeightPruningConfig
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning
from inc_torch.pruners import ALLOCATIONS, CRITERIA, SCHEDULES, Limits, PrunerSpec, parse_pattern
from inc_torch.pruners._progressive import InParts

INC_ORDER = [
    "pruning_configs",
    "target_sparsity",
    "pruning_type",
    "pattern",
    "op_names",
    "excluded_op_names",
    "backend",
    "start_step",
    "end_step",
    "pruning_scope",
    "pruning_frequency",
    "min_sparsity_ratio_per_op",
    "max_sparsity_ratio_per_op",
    "sparsity_decay_type",
    "pruning_op_types",
    "low_memory_usage",
]


def only(config):
    (spec,) = config.to_specs()
    return spec


class TestSurface:
    def test_positional_order_is_that_of_inc(self):
        parameters = inspect.signature(WeightPruningConfig).parameters.values()
        assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == INC_ORDER

    def test_defaults_are_those_of_inc(self):
        spec = only(WeightPruningConfig())
        assert type(spec.criterion) is CRITERIA.get("snip_momentum")
        assert spec.pattern_text == "4x1"
        assert (spec.target, spec.start, spec.end, spec.frequency) == (0.9, 0, 0, 1)
        assert spec.limits == Limits(0.0, 0.98)
        assert (spec.op_names, spec.excluded_op_names, spec.op_types) == ((), (), ("Conv", "Linear"))
        assert (type(spec.schedule).__name__, type(spec.allocation).__name__) == ("Exponential", "Global")
        assert spec.reduction == "mean"
        assert not spec.keeps_initial_zeros
        assert not spec.locks_zeros

    def test_no_local_config_and_one_empty_one_mean_the_same(self):
        assert WeightPruningConfig([]).to_specs() == WeightPruningConfig([{}]).to_specs()
        assert WeightPruningConfig({}).to_specs() == WeightPruningConfig().to_specs()

    def test_none_stands_for_the_default(self):
        given = WeightPruningConfig(**dict.fromkeys(INC_ORDER))
        assert given == WeightPruningConfig()

    def test_s9_step_options_by_keyword(self):
        config = WeightPruningConfig(
            start_step=10, end_step=90, pruning_frequency=8, target_sparsity=0.7, pruning_configs=[{"op_names": ["a"]}]
        )
        spec = only(config)
        assert (spec.start, spec.end, spec.frequency, spec.target) == (10, 90, 8, 0.7)

    def test_s11_a_plain_dict_of_options(self):
        options = {
            "pruning_configs": [
                {"op_names": ["layer1.*"], "pattern": "4x1"},
                {"op_names": ["layer2.*"], "pattern": "1x1", "target_sparsity": 0.5},
            ],
            "target_sparsity": 0.9,
            "pattern": "4x1",
            "pruning_frequency": 2,
            "op_names": [],
            "excluded_op_names": ["classifier", "pooler", ".*embeddings*"],
            "start_step": 0,
            "end_step": 4,
            "pruning_scope": "global",
            "min_sparsity_ratio_per_op": 0.0,
            "max_sparsity_ratio_per_op": 0.98,
            "sparsity_decay_type": "exp",
            "pruning_op_types": ["Conv", "Linear"],
            "backend": None,
        }
        first, second = WeightPruningConfig(**options).to_specs()
        assert (first.op_names, first.target) == (("layer1.*",), 0.9)
        assert (second.op_names, second.target) == (("layer2.*",), 0.5)
        assert first.excluded_op_names == second.excluded_op_names == ("classifier", "pooler", ".*embeddings*")

    def test_backend_default_has_no_effect(self):
        assert WeightPruningConfig(backend="default").to_specs() == WeightPruningConfig().to_specs()

    def test_numpy_numbers_become_plain_ones(self):
        config = WeightPruningConfig(target_sparsity=np.float32(0.5), end_step=np.int64(3))
        assert type(config.target_sparsity) is float
        assert type(config.end_step) is int

    @pytest.mark.parametrize("name", ["op_names", "excluded_op_names", "pruning_op_types"])
    def test_a_bare_string_is_a_list_of_one(self, name):
        assert getattr(WeightPruningConfig(**{name: "abc"}), name) == ("abc",)

    def test_weight_compression_reads_like_inc(self):
        view = WeightPruningConfig([{"pattern": "1x1"}], target_sparsity=0.5).weight_compression
        assert view.target_sparsity == view["target_sparsity"] == 0.5
        assert view.pattern == "4x1"
        assert "pruning_configs" not in view
        with pytest.raises(AttributeError, match=r"Did you mean 'target_sparsity'\?"):
            _ = view.target_sparsty


class TestMerging:
    def test_a_local_none_takes_the_global_value(self):
        assert only(WeightPruningConfig([{"target_sparsity": None}], target_sparsity=0.25)).target == 0.25

    def test_every_local_option_overrides(self):
        local = {
            "target_sparsity": 0.5,
            "pruning_type": "magnitude",
            "pattern": "2:4",
            "op_names": ["a"],
            "excluded_op_names": ["b"],
            "start_step": 1,
            "end_step": 9,
            "pruning_scope": "local",
            "pruning_frequency": 4,
            "min_sparsity_ratio_per_op": 0.1,
            "max_sparsity_ratio_per_op": 0.4,
            "sparsity_decay_type": "cube",
            "pruning_op_types": ["Linear"],
            "criterion_reduce_type": "max",
            "lock_init_sparsity": True,
        }
        assert only(WeightPruningConfig([local])) == only(WeightPruningConfig(**local))
        assert only(WeightPruningConfig([local])) == PrunerSpec(
            criterion=CRITERIA.get("magnitude")(),
            pattern=parse_pattern("2:4"),
            pattern_text="2:4",
            schedule=SCHEDULES.get("cube")(),
            allocation=ALLOCATIONS.get("local")(),
            reduction="max",
            target=0.5,
            start=1,
            end=9,
            frequency=4,
            limits=Limits(0.1, 0.4),
            op_names=("a",),
            excluded_op_names=("b",),
            op_types=("Linear",),
            keeps_initial_zeros=True,
        )

    def test_a_second_config_never_inherits_from_the_first(self):
        first = WeightPruningConfig(target_sparsity=0.7, pruning_type="magnitude", excluded_op_names=["head"])
        first.to_specs()
        assert only(WeightPruningConfig()).target == 0.9
        assert only(WeightPruningConfig(target_sparsity=0.5)).target == 0.5
        assert WeightPruningConfig().excluded_op_names == ()

    def test_the_callers_lists_are_neither_changed_nor_kept(self):
        names, local = ["a"], {"op_names": ["b"], "pattern": "1x1"}
        configs = [local]
        config = WeightPruningConfig(configs, op_names=names)
        config.to_specs()
        assert (names, local, configs) == (["a"], {"op_names": ["b"], "pattern": "1x1"}, [local])
        names.append("c")
        local["op_names"].append("c")
        local["pattern"] = "4x1"
        configs.append({})
        assert config == WeightPruningConfig([{"op_names": ["b"], "pattern": "1x1"}], op_names=["a"])

    def test_parameters_count_as_given_beside_them(self):
        assert only(WeightPruningConfig(parameters={"target_sparsity": 0.5})).target == 0.5
        config = WeightPruningConfig([{"target_sparsity": 0.25}], parameters={"target_sparsity": 0.5})
        assert only(config).target == 0.25

    def test_a_coefficient_may_be_a_numeric_string(self):
        assert WeightPruningConfig(reg_coeff="0.25").reg_coeff == 0.25

    def test_a_global_relation_counts_only_where_it_is_used(self):
        config = WeightPruningConfig([{"target_sparsity": 0.5}, {"target_sparsity": 0.25}], pattern="2:4")
        assert [spec.target for spec in config.to_specs()] == [0.5, 0.25]

    def test_the_greatest_sparsity_of_n_in_m_is_lowered(self):
        assert only(WeightPruningConfig(pattern="1:4", target_sparsity=0.25)).limits == Limits(0.0, 0.25)

    @pytest.mark.parametrize("name", ["lock_init_sparsity", "resume_from_pruned_checkpoint"])
    def test_initial_zeros_are_kept_by_either_name(self, name):
        assert only(WeightPruningConfig(**{name: True})).keeps_initial_zeros


class TestPatternLock:
    def test_without_a_pattern_every_single_zero_is_locked(self):
        spec = only(WeightPruningConfig(pruning_type="pattern_lock"))
        assert spec.locks_zeros
        assert spec.pattern_text == "1x1"

    def test_without_a_pattern_also_locally(self):
        assert only(WeightPruningConfig([{"pruning_type": "pattern_lock"}])).pattern_text == "1x1"

    def test_an_explicit_pattern_counts_even_if_it_is_the_default(self):
        assert only(WeightPruningConfig(pruning_type="pattern_lock", pattern="4x1")).pattern_text == "4x1"
        assert only(WeightPruningConfig([{"pruning_type": "pattern_lock"}], pattern="4x1")).pattern_text == "4x1"

    def test_replace_does_not_turn_the_default_into_an_explicit_pattern(self):
        assert only(WeightPruningConfig().replace(pruning_type="pattern_lock")).pattern_text == "1x1"

    def test_the_target_is_ignored(self):
        assert only(WeightPruningConfig(pruning_type="pattern_lock", pattern="2:4")).locks_zeros

    def test_start_and_end_must_be_equal(self):
        with pytest.raises(ConfigError, match=r"end_step=5: expected the same step as start_step=2"):
            WeightPruningConfig(pruning_type="pattern_lock", start_step=2, end_step=5)


# name, value, class of the error, what the message must hold after owner and field
WRONG = [
    ("target_sparsity", 1.0, ConfigError, "=1.0: expected a number in [0, 1)."),
    ("target_sparsity", 80, ConfigError, "=80: expected a number in [0, 1). 80 % is 0.8."),
    ("target_sparsity", float("nan"), ConfigError, "=nan: expected a number in [0, 1)."),
    ("target_sparsity", "0.5", ConfigTypeError, "='0.5': expected a number in [0, 1), not a str."),
    ("target_sparsity", True, ConfigTypeError, "=True: expected a number in [0, 1), not a bool."),
    ("max_sparsity_ratio_per_op", 1, ConfigError, "=1: expected a number in [0, 1)."),
    ("min_sparsity_ratio_per_op", -0.5, ConfigError, "=-0.5: expected a number in [0, 1)."),
    ("start_step", -1, ConfigError, "=-1: expected a step of 0 or more."),
    ("start_step", False, ConfigTypeError, "=False: expected a step of 0 or more, not a bool."),
    ("end_step", 1.5, ConfigTypeError, "=1.5: expected a step of 0 or more, not a float."),
    ("pruning_frequency", 0, ConfigError, "=0: expected a number of steps, 1 or more."),
    ("pruning_frequency", 1.5, ConfigTypeError, "=1.5: expected a number of steps, 1 or more, not a float."),
    ("pruning_type", "magnitud", ConfigError, "Did you mean 'magnitude'?"),
    ("pruning_type", 3, ConfigTypeError, "=3: expected a string, not an int."),
    ("pattern", "4xq", ConfigError, "='4xq': Unknown pruning pattern '4xq'. Did you mean '4x1'?"),
    ("pattern", "4x1x2", ConfigError, "='4x1x2': Unknown pruning pattern '4x1x2'."),
    ("pattern", "0x1", ConfigError, "='0x1': The pruning pattern '0x1' has an empty block"),
    ("pattern", "4:4", ConfigError, "='4:4': The pruning pattern '4:4' must prune at least one"),
    ("pattern", 4, ConfigTypeError, "=4: expected a string, not an int."),
    ("op_names", 5, ConfigTypeError, "=5: expected a list of regular expressions, not an int."),
    ("op_names", ["a", 5], ConfigTypeError, "[1]=5: expected a string, not an int."),
    ("excluded_op_names", ["("], ConfigError, "[0]='(': expected a regular expression. It is wrong here: missing )"),
    ("pruning_scope", "globl", ConfigError, "='globl': expected one of 'global', 'local'. Did you mean 'global'?"),
    ("pruning_scope", 1, ConfigTypeError, "=1: expected one of 'global', 'local', not an int."),
    ("sparsity_decay_type", "cubic", ConfigError, "'linear'. Did you mean 'cube'?"),
    ("criterion_reduce_type", "men", ConfigError, "='men': expected one of 'mean', 'sum', 'max'. Did you mean 'mean'?"),
    ("criterion_type", "snip_mom", ConfigError, "Did you mean 'snip_momentum'?"),
    ("reg_type", "group_laso", ConfigError, "expected one of 'group_lasso'. Did you mean 'group_lasso'?"),
    ("reg_coeff", -1, ConfigError, "=-1: expected a number of 0 or more."),
    ("reg_coeff", "strong", ConfigTypeError, "='strong': expected a number of 0 or more, not a str."),
    ("low_memory_usage", 1, ConfigTypeError, "=1: expected True or False, not an int."),
    ("resume_from_pruned_checkpoint", "False", ConfigTypeError, "='False': expected True or False, not a str."),
    ("lock_init_sparsity", "yes", ConfigTypeError, "='yes': expected True or False, not a str."),
    ("parameters", 3, ConfigTypeError, "=3: expected a dict of options, not an int."),
    ("parameters", {"reg_coef": 1}, ConfigTypeError, " has no option 'reg_coef'. Did you mean 'reg_coeff'?"),
    ("parameters", {"reg_coeff": -1}, ConfigError, ".reg_coeff=-1: expected a number of 0 or more."),
]


class TestMessages:
    @pytest.mark.parametrize(("name", "value", "kind", "text"), WRONG, ids=[f"{w[0]}={w[1]!r}" for w in WRONG])
    def test_a_wrong_value_names_field_value_and_rule(self, name, value, kind, text):
        with pytest.raises(kind) as caught:
            WeightPruningConfig(**{name: value})
        assert type(caught.value) is kind
        assert str(caught.value).startswith(f"WeightPruningConfig.{name}")
        assert text in str(caught.value)

    @pytest.mark.parametrize(("name", "value", "kind", "text"), WRONG, ids=[f"{w[0]}={w[1]!r}" for w in WRONG])
    def test_a_wrong_local_value_names_the_entry_too(self, name, value, kind, text):
        with pytest.raises(kind) as caught:
            WeightPruningConfig([{}, {name: value}])
        assert str(caught.value).startswith(f"WeightPruningConfig.pruning_configs[1].{name}")
        assert text in str(caught.value)

    def test_backend_is_not_one_of_another_framework(self):
        with pytest.raises(ConfigError, match=r"WeightPruningConfig\.backend='itex': expected one of 'default'\."):
            WeightPruningConfig(backend="itex")

    def test_the_ceiling_of_n_in_m_is_explained(self):
        with pytest.raises(ConfigError) as caught:
            WeightPruningConfig(pattern="2:4")
        assert str(caught.value) == (
            "WeightPruningConfig.target_sparsity=0.9: expected a number up to 0.5, as N/M is the ceiling of pattern "
            "'2:4'. Lower target_sparsity, or choose a pattern that can prune more."
        )

    def test_a_minimum_above_the_maximum(self):
        with pytest.raises(ConfigError) as caught:
            WeightPruningConfig(min_sparsity_ratio_per_op=0.5, max_sparsity_ratio_per_op=0.25)
        assert str(caught.value) == (
            "WeightPruningConfig.min_sparsity_ratio_per_op=0.5: expected a number up to max_sparsity_ratio_per_op=0.25."
        )

    def test_a_minimum_above_the_ceiling_of_n_in_m(self):
        with pytest.raises(ConfigError, match=r"=0\.6: expected .* max_sparsity_ratio_per_op=0\.5, the N/M of '2:4'\."):
            WeightPruningConfig(pattern="2:4", target_sparsity=0.5, min_sparsity_ratio_per_op=0.6)

    def test_an_end_before_the_start(self):
        with pytest.raises(ConfigError) as caught:
            WeightPruningConfig([{"start_step": 5}], end_step=3)
        assert str(caught.value) == (
            "WeightPruningConfig.pruning_configs[0].end_step=3: expected a step not before start_step=5."
        )

    def test_a_criterion_that_disagrees_with_the_type(self):
        assert only(WeightPruningConfig(criterion_type="snip_momentum")) == only(WeightPruningConfig())
        with pytest.raises(ConfigError, match=r"criterion_type='snip': .* Leave it out, or set pruning_type='snip'\."):
            WeightPruningConfig(criterion_type="snip")

    def test_an_unknown_local_key_names_entry_and_nearest(self):
        with pytest.raises(TypeError) as caught:
            WeightPruningConfig([{}, {"target_sparsty": 0.5}])
        assert str(caught.value) == (
            "WeightPruningConfig.pruning_configs[1] has no option 'target_sparsty'. Did you mean 'target_sparsity'?"
        )

    @pytest.mark.parametrize("key", ["backend", "pruning_configs"])
    def test_some_options_cannot_be_local(self, key):
        with pytest.raises(ConfigTypeError, match=rf"pruning_configs\[0\] has no option '{key}'\."):
            WeightPruningConfig([{key: None}])

    def test_local_configs_must_be_dicts(self):
        with pytest.raises(ConfigTypeError, match=r"pruning_configs\[0\]='4x1': expected a dict of options, not a str"):
            WeightPruningConfig(["4x1"])
        with pytest.raises(ConfigTypeError, match=r"pruning_configs='4x1': expected a list of dicts, not a str\."):
            WeightPruningConfig("4x1")
        with pytest.raises(ConfigTypeError, match=r"pruning_configs\[0\] has the key 3: expected keys that are"):
            WeightPruningConfig([{3: 4}])


WRONG_TOGETHER = [
    ({"pruning_type": "block_mask", "pattern": "2:4"}, "pattern='2:4': expected a block pattern such as '4x1' for"),
    ({"pruning_type": "block_mask_progressive"}, "'block_mask' has no progressive form"),
    ({"pruning_type": "retrain_free"}, "pattern='4x1': expected a pattern with 'channel'"),
    ({"pruning_type": "sparse_gpt"}, "pattern='4x1': expected '1x1' or N:M"),
    ({"pruning_type": "sparse_gpt", "pattern": "11x1"}, "pattern='11x1': expected '1x1' or N:M"),
    ({"pruning_type": "sparse_gpt_progressive"}, "'sparse_gpt' has no progressive form"),
    ({"reg_type": "group_lasso", "pattern": "2:4"}, "pattern='2:4': expected a block pattern"),
    (
        {"pruning_type": "magnitude_progressive", "pattern": "1x2", "end_step": 20, "pruning_frequency": 4},
        "pattern='1x2': expected blocks of 4 or more weights",
    ),
]


class TestTypes:
    @pytest.mark.parametrize(("options", "text"), WRONG_TOGETHER, ids=[str(entry[0]) for entry in WRONG_TOGETHER])
    def test_what_does_not_go_together_is_refused(self, options, text):
        with pytest.raises(ConfigError) as caught:
            WeightPruningConfig(**options)
        assert text in str(caught.value)

    @pytest.mark.parametrize(
        "options",
        [
            {"pattern": "channelx1", "end_step": 20, "pruning_frequency": 4},
            {"pattern": "4:8", "end_step": 20, "pruning_frequency": 4, "target_sparsity": 0.5},
            {"pattern": "2x2", "end_step": 5, "pruning_frequency": 2},
        ],
        ids=str,
    )
    def test_progressive_types_keep_every_element(self, options):
        spec = only(WeightPruningConfig(pruning_type="magnitude_progressive", **options))
        assert spec.is_progressive
        assert spec.pattern == InParts(parse_pattern(options["pattern"]))
        assert type(spec.criterion) is CRITERIA.get("magnitude")

    @pytest.mark.parametrize(
        ("options", "numbers"),
        [
            ({"pattern": "1x2", "end_step": 4, "pruning_frequency": 2}, "they are 4 and 2"),
            ({"pattern": "1x2", "end_step": 20}, "they are 20 and 1"),
        ],
        ids=str,
    )
    def test_without_time_for_parts_the_plain_type_is_meant_and_said(self, options, numbers):
        with pytest.warns(InexactWarning, match=f"prunes as 'snip' does: .*{numbers}"):
            spec = only(WeightPruningConfig(pruning_type="snip_progressive", **options))
        assert not spec.is_progressive
        assert spec.pattern == parse_pattern("1x2")

    def test_a_misspelt_type_gets_a_suggestion_and_the_list(self):
        with pytest.raises(
            ConfigError, match=r"'snip_momentum_progressive'.*Did you mean 'snip_momentum_progressive'\?"
        ):
            WeightPruningConfig(pruning_type="snip_momentum_progresive")

    def test_a_later_type_is_fine_where_no_pruner_uses_it(self):
        config = WeightPruningConfig([{"pruning_type": "magnitude"}], pruning_type="block_mask")
        assert type(only(config).criterion) is CRITERIA.get("magnitude")
