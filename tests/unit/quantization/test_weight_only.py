"""`quantization.fit` with ``approach="weight_only"``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inc_torch import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion, load, quantization
from inc_torch.core.errors import ConfigError, GoalMissedError, InexactWarning
from inc_torch.export import attached_report
from inc_torch.quantizers import FloatType, QuantSpec, WeightOnlyScheme, quantize_weights, weight_only_name


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def config(weight=None, **options):
    rules = {} if weight is None else {"op_type_dict": {".*": {"weight": weight}}}
    return PostTrainingQuantConfig(approach="weight_only", **rules, **options)


def scheme_of(weight, **options):
    return config(weight, **options).to_spec().quant.treatment_of("0", "Linear")


def schemes(model):
    return {row.name: row.scheme for row in model.report().modules}


def test_it_needs_no_data_and_leaves_the_float_model_as_it_was():
    model = small()
    quantized = quantization.fit(model, config())
    assert [type(module).__name__ for module in quantized] == ["WeightOnlyLinear", "ReLU", "WeightOnlyLinear"]
    assert [type(module).__name__ for module in model] == ["Linear", "ReLU", "Linear"]
    expected = small()
    quantize_weights(expected, QuantSpec(WeightOnlyScheme()))
    inputs = torch.randn(5, 8)
    assert torch.equal(quantized(inputs), expected(inputs))
    assert {(row.bits, row.scheme) for row in quantized.report().modules} == {(4, "w4-g32-sym")}


def test_in_place_it_is_the_same_object():
    model = small()
    assert quantization.fit(model, config(), inplace=True) is model
    assert type(model[0]).__name__ == "WeightOnlyLinear"


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ({}, WeightOnlyScheme(4, 32)),
        ({"dtype": "int"}, WeightOnlyScheme(4, 32)),
        ({"dtype": ["int8"]}, WeightOnlyScheme(8, 32)),
        ({"bits": 3, "group_size": -1, "scheme": "asym", "algorithm": "RTN"}, WeightOnlyScheme(3, -1, symmetric=False)),
        ({"dtype": ["uint8", "int4"], "algorithm": ["AUTOROUND", "RTN"]}, WeightOnlyScheme(4, 32)),
        ({"dtype": "nf4"}, WeightOnlyScheme(codes="nf4")),
        ({"dtype": "fp4", "group_size": -1}, WeightOnlyScheme(4, -1, codes="fp4_e2m1_bnb")),
        ({"dtype": "fp4_e2m1_bnb", "bits": 4}, WeightOnlyScheme(codes="fp4_e2m1_bnb")),
        ({"dtype": "fp4_e2m1", "scheme": "sym"}, WeightOnlyScheme(codes="fp4_e2m1")),
    ],
)
def test_rules_say_bits_groups_and_symmetry(weight, expected):
    assert scheme_of(weight) == expected


def test_a_rule_that_leaves_bits_out_asks_for_the_default_as_in_inc():
    rules = config({"bits": 8, "group_size": 16, "scheme": "asym"}, op_name_dict={"0": {"weight": {"group_size": 8}}})
    quant = rules.to_spec().quant
    assert quant.treatment_of("0", "Linear") == WeightOnlyScheme(4, 8, symmetric=False)
    assert quant.treatment_of("1", "Linear") == WeightOnlyScheme(8, 16, symmetric=False)


@pytest.mark.parametrize("rule", [{"weight": {"dtype": "fp32"}}, {"activation": {"dtype": "fp32"}}])
def test_fp32_on_either_side_leaves_a_layer_in_float(rule):
    quantized = quantization.fit(small(), config(op_name_dict={"2": rule}))
    assert schemes(quantized) == {"0": "w4-g32-sym", "2": None}
    assert config(op_name_dict={"2": rule}).to_spec().quant.treatment_of("2", "Linear") is FloatType.FLOAT32


def test_the_arguments_of_rounding_count():
    arguments = {"enable_full_range": True, "enable_mse_search": True, "return_int": True, "group_dim": 1}
    assert scheme_of({}, recipes={"rtn_args": arguments}) == WeightOnlyScheme(full_range=True, clip_search=True)
    plain, full, searched = (
        quantization.fit(small(), config(recipes={"rtn_args": entries}))
        for entries in ({}, {"enable_full_range": True}, {"enable_mse_search": True})
    )
    weight = small()[2].weight
    assert torch.allclose(full[2].scales.abs(), weight.abs().amax(1, keepdim=True) / 8)
    errors = [(model[2].weight - weight).square().mean() for model in (searched, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weight": {"algorithm": "AUTOROUND"}},
            r"'AUTOROUND': expected one of 'RTN', 'GPTQ', 'AWQ', 'TEQ'. AutoRound is a package of its own",
        ),
        ({"weight": {"dtype": "nf5"}}, "'nf5': expected one of 'int', 'int4', .* Did you mean 'nf4'?"),
        ({"weight": {"dtype": "uint8"}}, "'uint8': expected one of .* integers of 2 to 8 bits, or numbers from a tab"),
        ({"weight": {"dtype": "nf4", "bits": 8}}, r"\['bits'\]=8: expected 4. Codes of dtype 'nf4' have four bits and"),
        ({"weight": {"dtype": "fp4", "scheme": "asym"}}, r"\['scheme'\]='asym': expected 'sym'.*leave 'scheme' out"),
        ({"weight": {"bits": 1}}, "expected an integer from 2 to 8"),
        ({"weight": {"bits": 9}}, "expected an integer from 2 to 8"),
        ({"weight": {"bits": 4.5}}, "expected an integer from 2 to 8"),
        ({"weight": {"group_size": 0}}, "=0: expected -1, which is a whole row, or an integer above 0"),
        ({"weight": {"group_size": -2}}, "=-2: expected -1, which is a whole row, or an integer above 0"),
        ({"weight": {"scheme": "asymm"}}, "Did you mean 'asym'"),
        ({"op_name_dict": {"0": {"activation": {"dtype": "int8"}}}}, "leaves inputs in float: leave this side"),
        ({"recipes": {"rtn_args": {"group_dim": 0}}}, r"rtn_args'\]\['group_dim'\]=0: expected 1"),
        ({"recipes": {"rtn_args": {"enable_full": True}}}, "Did you mean 'enable_full_range'"),
    ],
)
def test_what_is_wrong_is_refused_when_the_configuration_is_built(options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_codes_from_a_table_take_the_place_of_what_an_earlier_rule_says():
    rules = config({"bits": 8, "scheme": "asym"}, op_name_dict={"0": {"weight": {"dtype": "nf4"}}})
    quant = rules.to_spec().quant
    assert quant.treatment_of("0", "Linear") == WeightOnlyScheme(codes="nf4")
    assert quant.treatment_of("1", "Linear") == WeightOnlyScheme(8, symmetric=False)


def test_a_search_sees_each_kind_of_codes_once():
    weight = {"dtype": ["nf4", "int"], "scheme": ["sym", "asym"], "bits": [4, 8]}
    found = config(weight).to_spec().quant.choices_of("0", "Linear")
    labels = [weight_only_name(scheme) for scheme in found]
    assert labels[0] == "nf4-g32"
    assert sorted(labels[1:]) == ["w4-g32-asym", "w4-g32-sym", "w8-g32-asym", "w8-g32-sym"]


def test_the_report_says_where_a_row_is_shorter_than_a_group():
    quantized = quantization.fit(small(), config({"group_size": 12}))
    notes = {row.name: row.notes for row in quantized.report().modules}
    assert notes == {"0": ("each row of 8 is one group",), "2": ()}


def test_a_rule_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match="op_name_dict matches no module"):
        quantization.fit(small(), config(op_name_dict={"lm_head": {"weight": {"dtype": "fp32"}}}))


def test_changing_the_approach_reads_the_rules_again():
    with pytest.raises(ConfigError, match="only approach='weight_only' makes groups"):
        config({"group_size": 32}).replace(approach="static")
    assert PostTrainingQuantConfig.from_dict(config({"group_size": 8}).to_dict()) == config({"group_size": 8})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"recipes": {"smooth_quant": True}},
            "smooth_quant.* has no effect: approach='weight_only' rounds weights alone",
        ),
        (
            {"recipes": {"awq_args": {"enable_auto_scale": True}}},
            "awq_args.* has no effect: no rule asks for the algorithm 'AWQ'",
        ),
        (
            {"recipes": {"autoround_args": {"iters": 10}}},
            "autoround_args.* has no effect: AutoRound is a package of its own",
        ),
        ({"reduce_range": True}, "reduce_range has no effect: inputs are not quantized"),
    ],
)
def test_options_of_other_ways_to_quantize_are_warned_about(options, text):
    with pytest.warns(InexactWarning, match=text):
        quantization.fit(small(), config(**options))


@pytest.mark.parametrize("weight", [{}, {"bits": 3, "group_size": 5, "scheme": "asym"}])
def test_outputs_are_bit_equal_after_saving_and_loading(weight, tmp_path):
    quantized = quantization.fit(small(), config(weight))
    quantized.save(tmp_path)
    loaded = load(tmp_path, model=small())
    inputs = torch.randn(3, 8)
    assert torch.equal(loaded(inputs), quantized(inputs))
    assert attached_report(loaded) == quantized.report()


def test_a_missed_goal_names_what_helps():
    conf = config(
        accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
        tuning_criterion=TuningCriterion(on_miss="raise", max_trials=1),
    )
    scores = iter([1.0, 0.5])
    with pytest.raises(GoalMissedError, match=r"a weight_only model, scores 0.5000.*more bits or smaller groups"):
        quantization.fit(small(), conf, eval_func=lambda _: next(scores))
