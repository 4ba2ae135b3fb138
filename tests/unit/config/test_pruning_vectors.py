"""The recorded vectors that speak of configurations.

A `match` vector must give what INC gives: the resolved values, or an exception of the class INC raises.
Where this package differs, the vector is named below with what it does instead.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inc_torch.config import WeightPruningConfig
from inc_torch.core.errors import ConfigError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "pruning.json").read_text())["vectors"]
BUILTIN = {"AssertionError": AssertionError, "TypeError": TypeError, "ValueError": ValueError}

# INC fails with another builtin.
OTHERWISE = {
    "D20": r"pruning_type='block_mask_progressive': 'block_mask' has no progressive form",
}
# INC's bugs.
FIXED = ("C19", "D02", "D03")

VALIDATION = {vector["id"]: vector for vector in VECTORS if vector["kind"] == "validation"}
REFUSED = {name: vector for name, vector in VALIDATION.items() if not vector["expected"]["ok"]}
ACCEPTED = {name: vector for name, vector in VALIDATION.items() if vector["expected"]["ok"]}


@pytest.mark.parametrize("name", sorted(set(REFUSED) - set(OTHERWISE) - set(FIXED)))
def test_what_inc_refuses_is_refused_with_the_same_builtin(name):
    vector = REFUSED[name]
    with pytest.raises(BUILTIN[vector["expected"]["error"]]) as caught:
        WeightPruningConfig(**vector["config"])
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("name", sorted(set(REFUSED) - set(OTHERWISE) - set(FIXED)))
def test_a_local_option_is_refused_like_a_global_one(name):
    with pytest.raises(ConfigError, match=r"WeightPruningConfig\.pruning_configs\[1\]"):
        WeightPruningConfig([{"pattern": "1x1"}, REFUSED[name]["config"]])


@pytest.mark.parametrize("name", sorted(set(ACCEPTED) - set(OTHERWISE) - set(FIXED)))
def test_what_inc_accepts_resolves_to_the_same_values(name):
    vector = ACCEPTED[name]
    config = WeightPruningConfig([vector["config"]])
    (expected,) = vector["expected"].get("resolved", [{}])  # of some only the pruner's class is recorded
    (spec,) = config.to_specs()
    resolved = {
        "target_sparsity": spec.target,
        "pattern": spec.pattern_text,
        "max_sparsity_ratio_per_op": spec.limits.greatest,
        "reg_coeff": config.reg_coeff,
    }
    assert {key: resolved[key] for key in expected} == expected


@pytest.mark.parametrize("name", sorted(OTHERWISE))
def test_what_is_refused_with_another_builtin_says_why(name):
    with pytest.raises(ConfigError, match=OTHERWISE[name]):
        WeightPruningConfig(**VALIDATION[name]["config"])


def test_c19_a_coefficient_at_the_top_level_is_kept():
    assert WeightPruningConfig(**VALIDATION["C19"]["config"]).reg_coeff == 0.25


@pytest.mark.parametrize("name", ["D02", "D03"])
def test_a_gradient_criterion_may_prune_once_at_the_first_update(name):
    (spec,) = WeightPruningConfig(**VALIDATION[name]["config"]).to_specs()
    assert spec.criterion.needs_gradient
    assert (spec.start, spec.end) == (0, 0)


def test_every_validation_vector_is_covered():
    assert len(VALIDATION) == 29
    assert set(OTHERWISE) | set(FIXED) <= set(VALIDATION)


ELSEWHERE_WORDS = ("progressive", "block_mask", "retrain_free", "sparse_gpt", "mha", "group_lasso")
RUNS = {
    vector["id"]: vector["config"]
    for vector in VECTORS
    if vector["kind"] in ("one_shot", "trace", "schedule", "report")
    and not any(word in json.dumps(vector["config"]) for word in ELSEWHERE_WORDS)
}


@pytest.mark.parametrize("name", RUNS)
def test_the_configs_of_recorded_runs_are_understood(name):
    config = RUNS[name]
    (spec,) = WeightPruningConfig([config]).to_specs()
    assert (spec,) == WeightPruningConfig(**config).to_specs()
    assert (spec.start, spec.end) == (config["start_step"], config["end_step"])
    assert spec.frequency == config.get("pruning_frequency", 1)
    assert spec.target == config.get("target_sparsity", 0.9)
    assert spec.pattern_text == config["pattern"]
    assert spec.locks_zeros == (config["pruning_type"] == "pattern_lock")
    assert spec.keeps_initial_zeros == config.get("lock_init_sparsity", False)


def test_m33_each_local_dict_overrides_for_itself():
    config = next(vector["config"] for vector in VECTORS if vector["id"] == "M33-two-pruners")
    first, second = WeightPruningConfig(config["pruning_configs"], **config["global"]).to_specs()
    assert (first.op_names, first.pattern_text, first.target) == (("^a$",), "1x1", 0.5)
    assert (second.op_names, second.pattern_text, second.target) == (("^b$",), "4x1", 0.25)
    assert type(first.criterion) is type(second.criterion)


def test_e11_a_bare_string_of_types_is_one_type():
    (spec,) = WeightPruningConfig(pruning_op_types="Linear").to_specs()
    assert spec.op_types == ("Linear",)


def test_e14_a_wrong_regular_expression_is_refused():
    with pytest.raises(AssertionError, match=r"op_names\[0\]='\[': expected a regular expression"):
        WeightPruningConfig(op_names=["["])
