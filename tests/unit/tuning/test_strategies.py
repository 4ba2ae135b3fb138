"""The order of trials of every built-in strategy: INC's where it is sound, worked out by hand elsewhere."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from inc_torch.core.errors import ConfigError, MissingPackageError
from inc_torch.tuning._sampling import shortfall
from inc_torch.tuning._space import Space
from inc_torch.tuning._strategy import STRATEGIES, Goal, Search
from tests.unit.tuning.simulated import ALWAYS, NEVER, STATIC, Driven, ToldErrors, drive, linears, operation

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text(encoding="utf-8"))
ORDERS, MIXED = VECTORS["trial_orders"]["cases"], VECTORS["mixed_precision"]
RELATIVE = Goal(1.0, 0.99)


def m2(labels: str = f"{STATIC} fp32", **more) -> Space:
    return Space(linears(labels, "fc1", "fc2"), **more)


def m3(labels: str = f"{STATIC} fp32") -> Space:
    return Space((operation("conv", "Conv2d", f"{STATIC} fp32"), *linears(labels, "fc1", "fc2")))


def strategy(name: str, **keywords):
    return STRATEGIES.get(name)(**keywords)


# ---------------------------------------------------------------------------- INC's orders


def without_repetitions(case):
    """The distinct trials of a vector and their scores: INC tries a few of them twice."""
    sizes = case.get("calibration_sampling_size", [None] * len(case["trials"]))
    distinct = {}
    for trial, score, size in zip(case["trials"], case["evals"][1:], sizes, strict=False):
        distinct.setdefault((tuple(trial.items()), size), score)
    return list(distinct), list(distinct.values())


def as_in_vectors(driven: Driven, space: Space):
    names = [f"{one.name}|{one.kind}" for one in space.operations]
    return [(tuple(zip(names, recipe.labels, strict=True)), recipe.samples) for recipe in driven.recipes]


REPLAYED = {
    "basic/nobf16": ("basic", m3(), NEVER),
    "basic/bf16": ("basic", m3(f"{STATIC} bf16 fp32"), NEVER),
    "basic/varied": ("basic", m3(), RELATIVE),
    "basic/relative_edge": ("basic", m3(), RELATIVE),
    "basic/relative_below": ("basic", m3(), RELATIVE),
    "basic/abs_hib_false_ok": ("basic", m3(), Goal(1.0, 1.1, higher_is_better=False)),
    "basic/neg_acc_relative": ("basic", m3(), Goal(-1.0, -0.99)),
    "basic/neg_acc_relative2": ("basic", m3(), Goal(-1.0, -0.99)),
    "basic/approach_dynamic": ("basic", m2("d:asym/minmax fp32"), NEVER),
    "basic/two_calibration_sizes": ("basic", m2(samples=(16, 32)), NEVER),
    "auto": ("auto", m3(), RELATIVE),
    "auto/first_meet": ("auto", m3(), RELATIVE),
    "auto/cons_stage_meets_linear_only": ("auto", m3(), RELATIVE),
    "auto/max_trials1": ("auto", m3(), RELATIVE),
    "cons/both_meet": ("conservative", m3(), RELATIVE),
    "exhaustive": ("exhaustive", m2(), NEVER),
    "no_quantizable_op": ("basic", Space(()), NEVER),
}
BY_HAND = {
    "auto/basic_stage_meets": "its last score is that of a repetition",
    "basic/timeout_large_max3": "the driver goes on after the goal",
    "cons/equal_target": "a score on the target is not enough to keep a group",
    "hawq_v2": "starts from the second option",
    "mse/M3": "crashes",
    "mse_v2": "errors are told",
    "mse_v2/max_trials_3": "errors are told",
    "mse_v2/meet": "errors are told",
    "mse_v2/meet2": "errors are told",
    "random": "proposes one recipe",
}


def test_all_recorded_orders_are_used():
    assert set(ORDERS) == set(REPLAYED) | set(BY_HAND)


@pytest.mark.parametrize("case", REPLAYED)
def test_trials_come_in_the_order_of_inc(case):
    name, space, goal = REPLAYED[case]
    trials, scores = without_repetitions(ORDERS[case])
    driven = drive(strategy(name), space, scores, goal, most=len(trials))
    assert as_in_vectors(driven, space) == trials
    assert (driven.last_met is not None) == (ORDERS[case]["returned"] == "model")


@pytest.mark.parametrize("case", ["basic/nobf16", "basic/bf16", "basic/approach_dynamic", "auto", "exhaustive"])
def test_nothing_comes_after_the_last_trial_of_inc(case):
    name, space, _ = REPLAYED[case]
    trials, _ = without_repetitions(ORDERS[case])
    assert as_in_vectors(drive(strategy(name), space, itertools.repeat(0.5)), space) == trials


def test_basic_goes_on_after_the_goal_when_the_driver_does():
    trials, scores = without_repetitions(ORDERS["basic/timeout_large_max3"])
    driven = drive(strategy("basic"), m2(), scores, RELATIVE, most=2, ends=False)
    assert as_in_vectors(driven, m2()) == trials


def test_auto_meets_the_goal_in_basic():
    *first, _ = without_repetitions(ORDERS["auto/basic_stage_meets"])[0]
    driven = drive(strategy("auto"), m3(), [0.5, 0.5, 0.5, 0.999], RELATIVE)
    assert as_in_vectors(driven, m3())[:2] == first
    assert driven.labels[3] == "s:asym/kl s:asym/minmax s:asym/minmax"
    assert driven.why == "met"


def test_blocks_of_a_transformer_fall_back_before_single_operations():
    coverage = VECTORS["default_coverage"]["tiny_bert_transformers_4.49"]["static"]["ops"]
    labels = {"Embedding": "s:rows fp32", "Linear": f"{STATIC} fp32", "LayerNorm": "fp32", "Dropout": "fp32"}
    operations = [operation(*key.split("|"), labels[key.split("|")[1]]) for key in coverage]
    ffn = ("intermediate.dense", "output.dense")
    blocks = tuple(tuple(f"bert.encoder.layer.{layer}.{part}" for part in ffn) for layer in range(2))
    space = Space(tuple(operations), blocks=blocks)
    recorded = VECTORS["trial_orders"]["tiny_bert_basic"]

    driven = drive(strategy("basic"), space, itertools.repeat(0.5), most=len(recorded) - 1)

    for recipe, trial in zip(driven.recipes, [recorded[0], *recorded[2:]], strict=True):
        of_linears = {
            f"{one.name}|Linear": choice.label for one, choice in space.chosen(recipe) if one.kind == "Linear"
        }
        assert [name for name, label in of_linears.items() if label == "fp32"] == trial["fp32_ops"]
        (label,) = set(of_linears.values()) - {"fp32"}
        assert "/".join(trial["int8_linear_cfg"].split("/")[4:6]) == label.removeprefix("s:")


@pytest.mark.parametrize(
    ("case", "level"), [("meet_first", "auto"), ("never/auto", "auto"), ("never/0", 0), ("never/1", 1)]
)
def test_mixed_precision_comes_in_the_order_of_inc(case, level):
    trials, scores = without_repetitions(MIXED[case])
    driven = drive(strategy("auto_mixed_precision", quant_level=level), m2("bf16 fp32"), scores, RELATIVE)
    assert as_in_vectors(driven, m2("bf16 fp32")) == trials


# ---------------------------------------------------------------------------- basic


def test_basic_tries_bf16_then_fp16_then_fp32_with_blocks_first():
    space = Space(linears("s:kl bf16 fp16 fp32", "a", "b", "c"), blocks=(("a", "b"), ("b", "c")))
    driven = drive(strategy("basic"), space, itertools.repeat(0.5))
    expected = ["s:kl s:kl s:kl"]
    for mode in ("bf16", "fp16", "fp32"):
        expected += [f"s:kl {mode} {mode}", f"{mode} {mode} {mode}"]
        expected += [f"s:kl s:kl {mode}", f"s:kl {mode} s:kl", f"{mode} s:kl s:kl"]
    assert driven.labels == expected
    assert [len(asked) for _, asked in driven.stages] == [1, 5, 2, 5, 2, 5, 2]


def test_basic_puts_those_together_that_did_best_alone():
    scores = {"s:kl s:kl s:kl s:kl": 0.1, "s:kl s:kl s:kl fp32": 0.2, "s:kl s:kl fp32 s:kl": 0.4}
    scores |= {"s:kl fp32 s:kl s:kl": 0.2, "fp32 s:kl s:kl s:kl": 0.3}
    space = Space(linears("s:kl fp32", *"abcd"))
    driven = drive(strategy("basic"), space, lambda recipe: scores.get(" ".join(recipe.labels), 0.5))
    assert driven.labels[5:] == ["fp32 s:kl fp32 s:kl", "fp32 s:kl fp32 fp32", "fp32 fp32 fp32 fp32"]


def test_basic_takes_the_least_score_for_the_best_where_lower_is_better():
    scores = [3.0, 1.0, 2.0, 0.6, 0.5, 0.7]
    goal = Goal(0.0, 0.1, higher_is_better=False)
    space = Space(linears("s:kl s:minmax s:sym fp32", "a", "b", "c"))
    driven = drive(strategy("basic"), space, [*scores, 1.0, 1.0], goal)
    assert driven.labels[3:] == [
        "s:minmax s:minmax fp32",
        "s:minmax fp32 s:minmax",
        "fp32 s:minmax s:minmax",
        "s:minmax fp32 fp32",
        "fp32 fp32 fp32",
    ]


def test_nan_is_the_worst_of_scores():
    nan = math.nan
    space = Space(linears("s:kl s:minmax fp32", "a", "b"))
    driven = drive(strategy("basic"), space, [0.1, nan, nan, 0.2, 0.3], RELATIVE)
    assert driven.labels[2:] == ["s:kl fp32", "fp32 s:kl", "fp32 fp32"]
    assert drive(strategy("basic"), space, itertools.repeat(nan), ALWAYS).why == "nothing more"


def test_basic_leaves_operations_alone_that_are_not_quantized_or_cannot_fall_back():
    space = Space(
        (
            operation("norm", "LayerNorm", "bf16 fp32"),
            operation("stuck", "Linear", "s:kl"),
            operation("free", "Linear", "s:kl fp32"),
        )
    )
    assert drive(strategy("basic"), space, itertools.repeat(0.5)).labels == ["bf16 s:kl s:kl", "bf16 s:kl fp32"]


def test_basic_orders_operations_by_the_mode_of_their_default():
    space = Space(
        (
            operation("lstm", "LSTM", "d:sym d:asym fp32"),
            operation("fc1", "Linear", "s:kl s:minmax fp32"),
            operation("fc2", "Linear", "s:kl s:minmax fp32"),
        )
    )
    driven = drive(strategy("basic"), space, [0.9, 0.5, 0.5, 0.5, *itertools.repeat(0.5, 5)])
    assert driven.labels[:4] == [
        "d:sym s:kl s:kl",
        "d:asym s:kl s:kl",
        "d:sym s:minmax s:minmax",
        "d:asym s:minmax s:minmax",
    ]
    assert driven.labels[4:7] == ["fp32 s:kl s:kl", "d:sym s:kl fp32", "d:sym fp32 s:kl"]


def test_operations_of_a_kind_share_the_choices_that_any_of_them_has():
    space = Space(
        (
            operation("a", "Linear", "s:asym/minmax"),
            operation("b", "Linear", "s:asym/kl s:asym/minmax s:sym/kl"),
            operation("c", "Linear", "d:asym d:sym"),
        )
    )
    driven = drive(strategy("basic"), space, itertools.repeat(0.5))
    assert driven.labels == [
        "s:asym/minmax s:asym/kl d:asym",
        "s:asym/minmax s:asym/minmax d:asym",
        "s:asym/minmax s:asym/minmax d:sym",
        "s:asym/minmax s:asym/kl d:sym",
        "s:asym/minmax s:sym/kl d:asym",
        "s:asym/minmax s:sym/kl d:sym",
    ]


def test_basic_makes_dynamic_what_can_be_and_starts_from_it_if_it_is_as_good():
    space = Space((operation("conv", "Conv2d", "s:kl fp32"), *linears("s:kl s:minmax d:minmax fp32", "fc")))
    as_good = drive(strategy("basic"), space, [0.5, 0.6, 0.6, 0.1, 0.1, 0.1])
    assert as_good.labels == ["s:kl s:kl", "s:kl s:minmax", "s:kl d:minmax", "s:kl fp32", "fp32 d:minmax", "fp32 fp32"]
    worse = drive(strategy("basic"), space, [0.5, 0.6, 0.5, 0.1, 0.1, 0.1])
    assert worse.labels == ["s:kl s:kl", "s:kl s:minmax", "s:kl d:minmax", "s:kl fp32", "fp32 s:minmax", "fp32 fp32"]


def test_each_number_of_samples_falls_back_from_its_own_best():
    space = Space(linears("s:kl s:minmax fp32", "a", "b"), samples=(8, 16))
    driven = drive(strategy("basic"), space, [0.5, 0.4, 0.6, 0.7, 0.9, 0.1, 0.2, 0.3, 0.3, 0.3])
    of_second = [" ".join(recipe.labels) for recipe in driven.recipes if recipe.samples == 16]
    assert driven.labels[:5] == ["s:kl s:kl", "s:minmax s:minmax", "s:kl fp32", "fp32 s:kl", "fp32 fp32"]
    assert of_second == ["s:kl s:kl", "s:minmax s:minmax", "s:minmax fp32", "fp32 s:minmax", "fp32 fp32"]


@pytest.mark.parametrize("name", ["basic", "mse", "mse_v2", "auto", "hawq_v2", "lower_bit"])
def test_the_best_alpha_is_kept(name):
    space = Space(linears("s:kl s:minmax fp32", "a", "b"), alphas=(0.5, 0.3, 0.7))
    scores = {0.5: 0.1, 0.3: 0.3, 0.7: 0.2}
    driven = drive(strategy(name), space, lambda recipe: scores[recipe.alpha])
    assert [recipe.alpha for recipe in driven.recipes[:3]] == [0.5, 0.3, 0.7]
    assert driven.labels[:3] == ["s:kl s:kl"] * 3
    assert {recipe.alpha for recipe in driven.recipes[3:]} == {0.3}


# ---------------------------------------------------------------------------- auto, conservative, exhaustive


def test_conservative_keeps_a_group_on_the_target():
    driven = drive(strategy("conservative"), m3(), [0.99, 0.99], RELATIVE)
    assert driven.labels == ["s:asym/kl fp32 fp32", "s:asym/kl s:asym/kl s:asym/kl"]


def test_conservative_goes_through_all_groups_and_drops_those_that_miss():
    space = Space(
        (
            operation("lstm", "LSTM", "d:sym bf16 fp32"),
            operation("fc", "LinearReLU", "s:kl d:asym bf16 fp32"),
            operation("times", "BatchMatMul", "s:kl fp32"),
            operation("product", "MatMul", "s:kl fp32"),
            operation("batched", "BMM", "s:kl fp32"),
            operation("up", "ConvTranspose2d", "d:asym s:kl fp32"),
            operation("conv", "Conv1D", "s:kl fp32"),
        )
    )
    driven = drive(strategy("conservative"), space, [0.99, 0.5, 0.995, 0.5], RELATIVE)
    assert driven.labels == [
        "bf16 bf16 fp32 fp32 fp32 s:kl s:kl",
        "bf16 bf16 fp32 s:kl fp32 s:kl s:kl",
        "bf16 bf16 fp32 fp32 s:kl s:kl s:kl",
        "bf16 s:kl fp32 fp32 s:kl s:kl s:kl",
    ]
    assert [stage.ends_at_goal for stage, _ in driven.stages] == [False, False, False, True]
    assert driven.last_met == driven.recipes[2]


def test_conservative_tries_nothing_where_no_kind_is_to_be_quantized():
    assert drive(strategy("conservative"), Space((operation("lstm", "LSTM", "d:sym fp32"),)), []).tried == []


def test_auto_ends_with_the_groups_that_were_kept():
    driven = drive(strategy("auto"), m3(), [0.5, 0.99, 0.5], RELATIVE)
    assert driven.labels == ["s:asym/kl s:asym/kl s:asym/kl", "s:asym/kl fp32 fp32"]
    assert driven.why == "nothing more"
    assert driven.last_met == driven.recipes[1]


def test_auto_is_done_with_the_default_also_when_the_driver_goes_on():
    assert len(drive(strategy("auto"), m3(), [0.99], RELATIVE, ends=False).tried) == 1


def test_exhaustive_makes_recipes_as_they_are_asked_for():
    space = Space(
        linears(f"{STATIC} fp32", *(f"fc{number}" for number in range(100))), samples=(8, 16), alphas=(0.5, 0.7)
    )
    driven = drive(strategy("exhaustive"), space, itertools.repeat(0.5), most=5)
    last = [recipe.labels[-2:] for recipe in driven.recipes]
    assert last == [
        ("s:asym/kl", "s:asym/kl"),
        ("s:asym/kl", "s:asym/minmax"),
        ("s:asym/kl", "s:sym/kl"),
        ("s:asym/kl", "s:sym/minmax"),
        ("s:asym/minmax", "s:asym/kl"),
    ]
    ((stage, asked),) = driven.stages
    assert list(itertools.islice(stage.recipes, 5)) == asked


def test_exhaustive_goes_through_samples_and_alphas():
    space = Space(linears("s:kl s:minmax d:asym fp32", "a"), samples=(8, 16), alphas=(0.5, 0.7))
    driven = drive(strategy("exhaustive"), space, itertools.repeat(0.5))
    found = [(*recipe.labels, recipe.samples, recipe.alpha) for recipe in driven.recipes]
    assert found == [(label, *rest) for *rest, label in itertools.product((8, 16), (0.5, 0.7), ("s:kl", "s:minmax"))]


# ---------------------------------------------------------------------------- mse, hawq_v2


@pytest.mark.parametrize("goal", [NEVER, Goal(0.0, -1.0, higher_is_better=False)])
def test_mse_starts_with_the_greatest_error_whatever_is_better(goal):
    probes = ToldErrors(outputs={"a": 0.2, "b": math.nan, "c": 0.4, "d": 0.2})
    space = Space(linears("s:kl bf16 fp32", *"abcd"))
    driven = drive(strategy("mse"), space, itertools.repeat(0.5), goal, probes=probes)
    for start, mode in ((1, "bf16"), (8, "fp32")):
        alone = ["".join("." if label == "s:kl" else "F" for label in labels.split()) for labels in driven.labels]
        assert alone[start : start + 4] == [".F..", "..F.", "...F", "F..."]
        assert alone[start + 4 : start + 7] == [".FF.", ".FFF", "FFFF"]
        assert mode in driven.labels[start]
    assert len(driven.tried) == 15
    assert probes.asked == [driven.recipes[0]]


@pytest.mark.parametrize(("count", "tried"), [(1, 1), (3, 3), (7, 5)])
def test_mse_tries_as_many_options_as_operations_but_five_at_most(count, tried):
    labels = " ".join(f"s:{number}" for number in range(9))
    space = Space(linears(f"{labels} fp32", *(f"fc{number}" for number in range(count))))
    driven = drive(strategy("mse"), space, itertools.repeat(0.5))
    assert len(driven.stages[0][1]) == tried
    assert driven.stages[1][1][0].labels.count(f"s:{tried - 1}") == count - 1


def test_mse_on_m3_begins_as_in_inc():
    trials = without_repetitions(ORDERS["mse/M3"])[0]
    driven = drive(strategy("mse"), m3(), [0.5, 0.5, 0.5, *itertools.repeat(0.5, 9)])
    assert as_in_vectors(driven, m3())[:3] == trials
    assert driven.labels[3:] == [
        "s:asym/kl s:sym/kl fp32",
        "s:asym/kl fp32 s:sym/kl",
        "fp32 s:sym/kl s:sym/kl",
        "s:asym/kl fp32 fp32",
        "fp32 fp32 fp32",
    ]


def test_hawq_v2_falls_back_from_the_default_by_traces():
    trials, scores = without_repetitions(ORDERS["hawq_v2"])
    from_default = json.loads(json.dumps(trials).replace("asym/minmax", "asym/kl"))
    driven = drive(
        strategy("hawq_v2"), m2(), scores, probes=ToldErrors(traces=VECTORS["hawq"]["inc_estimates_3_seeds"][0])
    )
    assert json.loads(json.dumps(as_in_vectors(driven, m2()))) == from_default
    assert [len(asked) for _, asked in driven.stages] == [1, 2]


def test_hawq_v2_takes_the_greatest_trace_first_also_where_lower_is_better():
    space = Space((*linears("s:kl bf16 fp32", "a", "b", "c"), *linears("s:kl bf16", "half"), *linears("fp32", "float")))
    probes = ToldErrors(traces={"a": 0.3, "b": 0.1, "c": 0.3, "half": 0.9, "float": 0.9})
    goal = Goal(0.0, -1.0, higher_is_better=False)
    driven = drive(strategy("hawq_v2"), space, itertools.repeat(0.5), goal, probes=probes)
    assert driven.labels[1:] == [
        "s:kl s:kl fp32 s:kl fp32",
        "fp32 s:kl fp32 s:kl fp32",
        "fp32 fp32 fp32 s:kl fp32",
    ]


# ---------------------------------------------------------------------------- mse_v2


def weighted(space: Space, *weights: dict[str, float]):
    """Errors of the model that are sums over quantized operations, one dict for each batch."""

    def error(recipe, batch):
        return sum(weights[batch][one.name] for one, choice in space.chosen(recipe) if choice.label[0] in "sd")

    return error


CONV_FIRST = {"conv": 9.0, "fc1": 1.0, "fc2": 3.0}


@pytest.mark.parametrize("case", ["mse_v2", "mse_v2/max_trials_3"])
def test_mse_v2_falls_back_in_the_order_of_inc(case):
    trials, scores = without_repetitions(ORDERS[case])
    errors = weighted(m2(), {"fc1": 2.0, "fc2": 1.0}, {"fc1": 2.0, "fc2": 1.0})
    driven = drive(strategy("mse_v2"), m2(), scores, RELATIVE, probes=ToldErrors(model=errors), most=len(trials))
    assert as_in_vectors(driven, m2()) == trials


@pytest.mark.parametrize("case", ["mse_v2/meet", "mse_v2/meet2"])
def test_mse_v2_quantizes_again_in_the_order_of_inc(case):
    trials, scores = without_repetitions(ORDERS[case])

    def errors(recipe, batch):
        """Those that INC must have seen: conv weighs most beside others, and least alone."""
        weights = {"conv": 0.5, "fc1": 1.0, "fc2": 3.0} if recipe.labels.count("fp32") > 1 else CONV_FIRST
        return weighted(m3(), weights, weights)(recipe, batch)

    driven = drive(strategy("mse_v2"), m3(), scores, RELATIVE, probes=ToldErrors(model=errors))
    numbers = ORDERS[case]["trial_numbers"]
    assert as_in_vectors(driven, m3()) == trials
    assert driven.why == "nothing more"
    best = trials[sorted(set(numbers)).index(ORDERS[case]["best_trial_number"])]
    assert as_in_vectors(Driven([outcome for outcome in driven.tried if outcome.is_met][-1:]), m3()) == [best]


def test_mse_v2_starts_anew_for_each_float_mode():
    space = Space(linears("s:kl bf16 fp32", "a", "b"))
    errors = weighted(space, {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0})
    driven = drive(strategy("mse_v2"), space, itertools.repeat(0.5), probes=ToldErrors(model=errors))
    assert driven.labels == ["s:kl s:kl", "s:kl bf16", "bf16 bf16", "s:kl fp32", "fp32 fp32"]


def test_mse_v2_ends_with_the_first_operation_and_goes_on_after_more():
    space = Space(linears("s:kl fp32", "a", "b", "c"))
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    probes = ToldErrors(model=weighted(space, weights, weights))
    assert drive(strategy("mse_v2"), space, [0.5, 1.0], RELATIVE, probes=probes).why == "met"
    driven = drive(strategy("mse_v2"), space, [0.5, 0.5, 0.5, 1.0, 1.0, 1.0], RELATIVE, probes=probes)
    assert driven.labels[3:] == ["fp32 fp32 fp32", "fp32 s:kl fp32", "fp32 s:kl s:kl"]
    assert [stage.ends_at_goal for stage, _ in driven.stages] == [True, True, False, False, False, True]
    assert driven.why == "met"


def test_mse_v2_is_done_at_the_goal_also_when_the_driver_goes_on():
    with_options = drive(
        strategy("mse_v2"), Space(linears("s:kl s:sym fp32", "a", "b")), [1.0, 0.5], RELATIVE, ends=False
    )
    assert with_options.labels == ["s:kl s:kl", "s:sym s:sym"]
    with_one_fallen = drive(strategy("mse_v2"), Space(linears("s:kl fp32", "a", "b")), [0.5, 1.0], RELATIVE, ends=False)
    assert [len(asked) for _, asked in with_one_fallen.stages] == [1, 1]


def test_mse_v2_adds_up_places_on_batches():
    space = Space(linears("s:kl fp32", *"abcd"))
    first, second = {"a": 90.0, "b": 8.0, "c": 2.0, "d": 1.0}, {"a": 1.0, "b": 20.0, "c": 2.0, "d": 30.0}
    for batches, labels in ((1, "fp32 s:kl s:kl s:kl"), (2, "s:kl fp32 s:kl s:kl")):
        probes = ToldErrors(model=weighted(space, first, second))
        driven = drive(strategy("mse_v2", confidence_batches=batches), space, itertools.repeat(0.5), probes=probes)
        assert driven.labels[1] == labels


def test_mse_v2_looks_again_where_errors_are_flat():
    names = [f"fc{number}" for number in range(20)]
    space = Space(linears("s:kl fp32", *names))

    def errors(recipe, batch):
        """fc0 is the best alone, fc1 and fc2 next; fc19 is the worst, and without it fc2 is the best."""
        floats = {name for name, label in zip(names, recipe.labels, strict=True) if label == "fp32"}
        first = {"fc0": 90.0, "fc1": 91.0, "fc2": 92.0, "fc19": 99.0}
        again = {"fc0": 80.0, "fc1": 70.0, "fc2": 60.0}
        if "fc19" in floats and len(floats) > 1:
            return again[next(iter(floats - {"fc19"}))]
        return first.get(next(iter(floats)), 95.0)

    probes = ToldErrors(model=errors)
    driven = drive(strategy("mse_v2", confidence_batches=1), space, itertools.repeat(0.5), probes=probes, most=2)
    assert [recipe.labels.index("fp32") for recipe in driven.recipes[1:]] == [2]
    assert len(probes.asked) == 20 + 3


def test_mse_v2_takes_nan_for_the_greatest_error():
    space = Space(linears("s:kl fp32", "a", "b", "c"))
    errors = weighted(space, {"a": 1.0, "b": 2.0, "c": 3.0})

    def one_is_nan(recipe, batch):
        return math.nan if recipe.labels == ("s:kl", "s:kl", "fp32") else errors(recipe, 0)

    driven = drive(strategy("mse_v2"), space, itertools.repeat(0.5), probes=ToldErrors(model=one_is_nan))
    assert driven.labels[1] == "s:kl fp32 s:kl"


# ---------------------------------------------------------------------------- mixed precision, lower bits


def test_mixed_precision_takes_kinds_in_alphabetical_order_and_operations_from_the_last():
    space = Space(
        (
            operation("b", "Linear", "bf16 fp32"),
            operation("n", "LayerNorm", "fp32"),
            operation("a", "Conv2d", "fp16 fp32"),
            operation("c", "Linear", "s:kl bf16 fp16 fp32"),
            operation("d", "GRU", "bf16"),
        )
    )
    driven = drive(strategy("auto_mixed_precision"), space, [0.5, 0.7, 0.5, 0.6, 0.5, 0.5, 0.5])
    start, conv, linear = "bf16 fp32 fp16 bf16 bf16", "bf16 fp32 fp32 bf16 bf16", "fp32 fp32 fp16 fp32 bf16"
    c, b = "bf16 fp32 fp16 fp32 bf16", "fp32 fp32 fp16 bf16 bf16"
    together = ["bf16 fp32 fp32 fp32 bf16", "fp32 fp32 fp32 fp32 bf16"]
    assert driven.labels == [start, conv, linear, c, b, *together]
    asked = [[" ".join(recipe.labels) for recipe in recipes] for _, recipes in driven.stages]
    assert asked == [[start, conv, linear, c, conv, b], together]


def lower(*names: str) -> Space:
    return Space((*linears("s:kl l:int4 fp32", *names), *linears("s:kl fp32", "z")))


def test_lower_bits_go_on_as_long_as_the_goal_is_met():
    scores = [1.0, 0.995, 0.5, 0.999, 0.993, 0.7, 1.0]
    driven = drive(strategy("lower_bit"), lower("a", "b", "c"), scores, RELATIVE)
    assert driven.labels == [
        "s:kl s:kl s:kl s:kl",
        "l:int4 s:kl s:kl s:kl",
        "s:kl l:int4 s:kl s:kl",
        "s:kl s:kl l:int4 s:kl",
        "l:int4 s:kl l:int4 s:kl",
        "l:int4 l:int4 l:int4 s:kl",
    ]
    assert driven.last_met.labels == ("l:int4", "s:kl", "l:int4", "s:kl")


def test_lower_bits_end_with_all_or_with_none():
    everything = drive(strategy("lower_bit"), lower("a", "b"), itertools.repeat(1.0), RELATIVE)
    assert everything.labels[3:] == ["l:int4 l:int4 s:kl"]
    assert everything.why == "met"
    none = drive(strategy("lower_bit"), lower("a", "b"), [1.0, 0.5, 0.5], RELATIVE)
    assert len(none.tried) == 3
    assert none.last_met == none.recipes[0]
    assert drive(strategy("lower_bit"), lower(), [1.0], RELATIVE).why == "met"


def test_lower_bits_fall_back_if_the_default_misses():
    driven = drive(strategy("lower_bit"), lower("a"), [0.5, 0.5, 0.5, 0.99], RELATIVE)
    assert driven.labels == ["s:kl s:kl", "s:kl fp32", "fp32 s:kl", "fp32 fp32"]
    assert driven.why == "met"


# ---------------------------------------------------------------------------- few operations, wrong arguments

PLANNED = ["auto", "basic", "conservative", "exhaustive", "hawq_v2", "lower_bit", "mse", "mse_v2"]


@pytest.mark.parametrize("name", [*PLANNED, "auto_mixed_precision"])
def test_nothing_to_choose_is_one_trial_at_most(name):
    for space in (Space(()), Space(linears("fp32", "a", "b"))):
        driven = drive(strategy(name), space, itertools.repeat(0.5))
        assert driven.recipes == ([] if name == "conservative" else [space.default])


@pytest.mark.parametrize("name", PLANNED)
def test_one_operation(name):
    driven = drive(strategy(name), Space(linears("s:kl fp32", "a")), itertools.repeat(0.5))
    assert driven.labels == (["s:kl"] if name in {"conservative", "exhaustive"} else ["s:kl", "fp32"])


@pytest.mark.parametrize(
    ("name", "keyword", "value", "want"),
    [
        ("mse_v2", "confidence_batches", 0, "an integer of 1 or more"),
        ("mse_v2", "confidence_batches", True, "an integer of 1 or more"),
        ("mse_v2", "confidence_batches", 2.0, "an integer of 1 or more"),
        ("tpe", "n_startup_trials", -1, "an integer of 1 or more"),
        ("tpe", "n_ei_candidates", "24", "an integer of 1 or more"),
        ("bayesian", "n_startup_trials", 0, "an integer of 1 or more"),
        ("hawq_v2", "hawq_v2_loss", 3, "a function of output and label"),
        ("auto_mixed_precision", "quant_level", 2, "'auto', 0 or 1"),
        ("auto_mixed_precision", "quant_level", True, "'auto', 0 or 1"),
    ],
)
def test_wrong_arguments_are_refused(name, keyword, value, want):
    with pytest.raises(ConfigError) as caught:
        strategy(name, **{keyword: value})
    assert str(caught.value) == f"{name}.{keyword}={value!r}: expected {want}."


def test_a_loss_is_kept_for_the_probes():
    assert strategy("hawq_v2", hawq_v2_loss=max).hawq_v2_loss is max


# ---------------------------------------------------------------------------- samplers


@pytest.fixture(params=["random", "tpe", "bayesian"])
def sampled_name(request):
    if request.param == "bayesian":
        pytest.importorskip("scipy")
    return request.param


def sample(name, trials, *, seed=0, cut=None, goal=None):
    """What a sampler proposes for six operations: more of them in int8 are better, more than ``goal`` miss it."""
    optuna = pytest.importorskip("optuna")
    keywords = {} if name == "random" else {"n_startup_trials": 5}
    search = Search(Space(()), NEVER, ToldErrors(), seed)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, direction="maximize")
    one, proposed = strategy(name, **keywords), []
    for number in range(1, trials + 1):
        if number == cut:
            study, one = optuna.load_study(study_name=study.study_name, storage=storage), strategy(name, **keywords)
        study.sampler = one.sampler(search, number)
        trial = study.ask()
        labels = [trial.suggest_categorical(f"fc{place}", ["int8", "fp32"]) for place in range(6)]
        if goal is not None:
            trial.set_user_attr("shortfall", float(labels.count("int8") - goal))
        study.tell(trial, labels.count("int8"))
        proposed.append(tuple(labels))
    return proposed


def test_samplers_are_deterministic_and_do_not_notice_a_cut(sampled_name):
    whole = sample(sampled_name, 7)
    assert sample(sampled_name, 7) == whole
    assert sample(sampled_name, 7, cut=7) == whole


def test_seeds_and_trials_differ(sampled_name):
    proposed = sample(sampled_name, 5)
    assert len(set(proposed)) == 5
    assert sample(sampled_name, 5, seed=1) != proposed


def test_random_proposes_everything_sooner_or_later():
    assert len(set(sample("random", 600))) == 64


@pytest.mark.parametrize(("name", "trials"), [("tpe", 40), ("bayesian", 10)])
def test_samplers_keep_to_what_meets_the_goal(name, trials):
    if name == "bayesian":
        pytest.importorskip("scipy")
    free, bound = (
        sum(labels.count("int8") for labels in sample(name, trials, goal=goal)[5:]) / (trials - 5) for goal in (None, 2)
    )
    assert free > 4
    assert bound < 3


def test_bayesian_names_the_package_that_it_needs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="The tuning strategy 'bayesian' needs the package 'scipy'"):
        strategy("bayesian").sampler(Search(Space(()), NEVER, ToldErrors()), 1)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [({}, [0.0]), ({"shortfall": 0.25}, [0.25]), ({"shortfall": math.nan}, [math.inf])],
)
def test_the_shortfall_of_a_trial_is_a_constraint(attributes, expected):
    optuna = pytest.importorskip("optuna")
    assert shortfall(optuna.trial.create_trial(value=0.0, user_attrs=attributes)) == expected
