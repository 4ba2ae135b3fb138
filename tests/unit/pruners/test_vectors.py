"""Every reference vector of the pruning core, replayed through `prepare_compression` and the hooks."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from inc_torch.core.errors import ConfigError, InexactWarning, LoopWarning
from inc_torch.training import prepare_compression
from tests.unit.pruners.vectors import (
    FULL_LOOP,
    VECTORS,
    Vector,
    config_of,
    fill_distinct,
    manager_for,
    masks_of,
    model_from,
    model_of,
    prune_once,
    pruners_of,
    replay,
    weights_of,
    zeros_in,
)

RTOL = 1e-5

# Configs alone, without a model; and models that are pruned block by block.
ELSEWHERE_KINDS = {
    "validation": "tests/unit/config",
    "sparse_gpt": "tests/unit/pruners/calibrated",
    "wanda": "tests/unit/pruners/calibrated",
    "slim": "tests/unit/pruners/slimming",
    "mha": "tests/unit/pruners/test_heads.py",
    "retrain_free": "tests/unit/pruners/calibrated/test_retrain_free.py",
    "legacy_epoch": "tests/unit/experimental/test_vectors.py",
    "legacy_step": "tests/unit/experimental/test_vectors.py",
}
ELSEWHERE = {
    "P06b-wanda-dsnot-narrow": "tests/unit/pruners/calibrated",
    "T11-progressive-4x1": "tests/unit/pruners/test_progressive.py",
}

MATCH_KINDS = ("one_shot", "one_shot_multi", "trace", "schedule", "selection", "report", "block_mask")


def is_match(vector: Vector) -> bool:
    return vector["kind"] in MATCH_KINDS and vector["parity"] == "match"


def _quietly(make: Callable[[], object]) -> object:
    """Layers that a pattern does not divide are warned about; tested by its own test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactWarning)
        return make()


def _same(actual: float | None, expected: float | None) -> bool:
    return actual is expected is None or actual == pytest.approx(expected, rel=RTOL)


def _check_ratios(actual: dict[str, float], expected: dict[str, float]) -> None:
    assert actual == pytest.approx(expected, rel=RTOL)


# ------------------------------------------------------------------------------------- as INC


def check_one_shot(vector: Vector) -> None:
    manager = _quietly(lambda: manager_for(vector))
    prune_once(manager)
    expected = vector["expected"]
    dense = {layer["name"]: torch.ones_like(torch.tensor(layer["weight"])) for layer in vector["inputs"]["layers"]}
    masks = {name: mask.int().tolist() for name, mask in dense.items()} | masks_of(manager)
    assert masks == expected["masks"]
    assert zeros_in(weights_of(manager)) == expected["zero_counts"]
    assert pruners_of(manager)[0].sparsity == pytest.approx(expected["blockwise_sparsity"], rel=RTOL)


def check_one_shot_multi(vector: Vector) -> None:
    model = model_of(vector["inputs"]["layers"])
    given = vector["config"]
    config = config_of({"config": {**given["global"], "pruning_configs": given["pruning_configs"]}})
    manager = prepare_compression(model, config)
    prune_once(manager)
    assert masks_of(manager) == vector["expected"]["masks"]


def check_trace(vector: Vector) -> None:
    manager, records = replay(vector)
    for step, (expected, record) in enumerate(zip(vector["expected"]["steps"], records, strict=True)):
        assert _same(record.target, expected["target"]), step
        if "masks_after_step_begin" in expected:
            assert record.masks == expected["masks_after_step_begin"], step
        if "zeros_in_weights_after_step_begin" in expected:
            assert record.zeros_after_begin == expected["zeros_in_weights_after_step_begin"], step
        for name, score in expected.get("scores_after_before_optimizer_step", {}).items():
            own = record.scores[name].reshape(torch.tensor(score).shape)
            torch.testing.assert_close(own, torch.tensor(score), rtol=RTOL, atol=0)
        for name, weight in expected.get("weights_after_after_optimizer_step", {}).items():
            torch.testing.assert_close(record.weights[name], torch.tensor(weight), rtol=RTOL, atol=0)
        if "zeros_in_weights_after_step" in expected:
            assert zeros_in(record.weights) == expected["zeros_in_weights_after_step"], step
    manager.on_train_end()
    for name, weight in vector["expected"]["final_weights"].items():
        torch.testing.assert_close(weights_of(manager)[name], torch.tensor(weight), rtol=RTOL, atol=0)
    _check_ratios(manager.report().ratios, vector["expected"]["report"])


def check_schedule(vector: Vector) -> None:
    inputs, expected = vector["inputs"], vector["expected"]
    count = inputs["total_elements"]
    weight = torch.arange(1.0, count + 1)
    weight[: round(count * inputs["initial_sparsity"])] = 0
    trace = {
        "config": vector["config"],
        "inputs": {
            "layers": [{"name": "a", "type": "Linear", "weight": weight.view(10, -1).tolist()}],
            "lr": 0.0,
            "grads_per_step": [{} for _ in expected["steps"]],
            "events_per_step": [FULL_LOOP for _ in expected["steps"]],
        },
    }
    manager, records = replay(trace)
    assert pruners_of(manager)[0].window.updates == expected["total_prune_updates"]
    assert [entry["step"] for entry in expected["steps"]] == list(range(len(records)))
    for entry, record in zip(expected["steps"], records, strict=True):
        assert _same(record.target, entry["target"]), entry["step"]
        assert record.zeros_after_begin["a"] == entry["zeros_of_100"], entry["step"]


def check_selection(vector: Vector) -> None:
    model = model_from(vector["inputs"]["model"])
    if "error" in vector["expected"]:
        with pytest.raises(AssertionError):
            manager_for(vector, model)
        return
    manager = manager_for(vector, model)
    (pruner,) = pruners_of(manager)
    assert [layer.name for layer in pruner.layers] == vector["expected"]["pruned_layers"]
    # INC writes the head into excluded_op_names; here it is a line of the report and the config stays as it was.
    heads = [finding.module for finding in pruner.left_dense if finding.note == "classifier head, not pruned"]
    assert heads == vector["expected"]["excluded_op_names_after"]


def _report_of(vector: Vector) -> dict[str, float]:
    model = model_from(vector["inputs"]["model"])
    fill_distinct(model)
    if vector["inputs"]["tied"]:
        first, second = map(model.get_submodule, vector["inputs"]["tied"])
        second.weight = first.weight
    assert {name: value.numel() for name, value in model.named_parameters()} == vector["inputs"]["numel"]
    manager = manager_for(vector, model)
    prune_once(manager)
    return manager.report().ratios


def check_report(vector: Vector) -> None:
    _check_ratios(_report_of(vector), vector["expected"])


def check_block_mask(vector: Vector) -> None:
    inputs, expected = vector["inputs"], vector["expected"]["steps"]
    manager = manager_for(vector)
    layer, (pruner,) = manager.model.a, pruners_of(manager)
    optimizer = torch.optim.SGD(layer.parameters(), lr=inputs["lr"])
    manager.on_train_begin()
    for step, (x, at_step) in enumerate(zip(inputs["x_per_step"], expected, strict=True)):
        manager.on_step_begin(step)
        mask = torch.tensor(at_step["block_mask_after_step_begin"])
        assert masks_of(manager)["a"] == mask.int().expand(4, -1).tolist(), step
        optimizer.zero_grad()
        layer(torch.tensor(x)).square().sum().backward()
        manager.on_before_optimizer_step()
        scores = pruner.scores.get("a", torch.zeros(1, 8))
        torch.testing.assert_close(scores, torch.tensor(at_step["scores"]), rtol=RTOL, atol=0)
        optimizer.step()
        manager.on_after_optimizer_step()
        torch.testing.assert_close(layer.weight.data, torch.tensor(at_step["weights"]), rtol=1e-4, atol=1e-3)


CHECKS: dict[str, Callable[[Vector], None]] = {
    "one_shot": check_one_shot,
    "one_shot_multi": check_one_shot_multi,
    "trace": check_trace,
    "schedule": check_schedule,
    "selection": check_selection,
    "report": check_report,
    "block_mask": check_block_mask,
}


# ------------------------------------------------------------------------- where we differ from INC

OURS: dict[str, tuple[str, Callable[[Vector], None]]] = {}


def ours(vector_id: str, reason: str) -> Callable[[Callable[[Vector], None]], Callable[[Vector], None]]:
    """File a check of our own behaviour where INC's is optional or a bug."""

    def file(check: Callable[[Vector], None]) -> Callable[[Vector], None]:
        OURS[vector_id] = (reason, check)
        return check

    return file


@ours("M14-2:4-ties", "exactly N of M go, also from a group of equal values; the first in order goes first")
def n_in_m_is_exact_with_ties(vector: Vector) -> None:
    manager = manager_for(vector)
    prune_once(manager)
    assert masks_of(manager) == vector["better"]["masks"]


@ours("M23-1x1-ties", "exactly floor(target * units) go, also with ties; the first in order goes first")
def unstructured_is_exact_with_ties(vector: Vector) -> None:
    manager = manager_for(vector)
    prune_once(manager)
    assert zeros_in(weights_of(manager)) == vector["better"]["zero_counts"] == {"a": 2}
    weight = torch.tensor(vector["inputs"]["layers"][0]["weight"]).flatten()
    first_two = weight.abs().argsort(stable=True)[:2]
    mask = torch.tensor(masks_of(manager)["a"]).flatten()
    assert mask.argsort(stable=True)[:2].tolist() == sorted(first_two.tolist())


@ours("M22-hf-conv1d-2x1", "transformers' Conv1D is seen as the Linear that it is the transpose of")
def hf_conv1d_is_a_transposed_linear(vector: Vector) -> None:
    manager = manager_for(vector)
    prune_once(manager)
    (layer,) = vector["inputs"]["layers"]
    turned = {**layer, "type": "Linear", "weight": torch.tensor(layer["weight"]).t().tolist()}
    as_linear = manager_for(vector, model_of([turned]))
    prune_once(as_linear)
    mask = torch.tensor(masks_of(manager)["a"])
    assert mask.t().tolist() == masks_of(as_linear)["a"]
    assert mask.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]  # blocks of two outputs here, of two inputs in INC


@ours("M32-nondivisible-global-snip_momentum", "a layer that the pattern does not divide stays dense, one warning")
def indivisible_layer_stays_dense(vector: Vector) -> None:
    ones = {layer["name"]: torch.ones_like(torch.tensor(layer["weight"])) for layer in vector["inputs"]["layers"]}
    steps = [{name: gradient.tolist() for name, gradient in ones.items()}] * 2
    trace = copy.deepcopy(vector)
    trace["inputs"] |= {"lr": 0.0, "grads_per_step": steps, "events_per_step": [FULL_LOOP, FULL_LOOP]}
    with pytest.warns(InexactWarning, match=r"6x4 weight does not divide into 4x1 blocks") as caught:
        manager, records = replay(trace)
    assert len(caught) == 1
    # With gradients of one the snip scores are magnitudes, as in M29.
    assert records[1].masks == {"a": VECTORS["M29-nondivisible-local"]["expected"]["masks"]["a"]}
    assert zeros_in(records[1].weights) == {"a": 16, "b": 0}
    (dense,) = [row for row in manager.report().modules if row.name == "b"]
    assert dense.asked_sparsity is None
    assert dense.notes == ("left dense: a 6x4 weight does not divide into 4x1 blocks",)


@ours("T07c-pattern_lock-signed-sum", "a block is empty when all its weights are zero, not when their sum is")
def lock_looks_at_every_weight(vector: Vector) -> None:
    _, records = replay(vector)
    assert records[0].masks == vector["better"]["masks"]


def _complete(vector: Vector) -> list:
    """The same run with every hook called."""
    return replay(vector, [FULL_LOOP] * len(vector["inputs"]["events_per_step"]))[1]


def _check_healed(vector: Vector, hook: str) -> None:
    with pytest.warns(LoopWarning, match=rf"does not call {hook}; its work is done all the same") as caught:
        manager, _records = replay(vector)
        manager.on_train_end()
    assert len(caught) == 1
    complete = _complete(vector)
    for name, weight in complete[-1].weights.items():
        assert torch.equal(weights_of(manager)[name], weight)
    assert zeros_in(weights_of(manager)) == {"a": 8}


@ours("T13-no-after_optimizer_step", "the missing hook's work is done all the same, with one warning")
def missing_after_step_is_healed(vector: Vector) -> None:
    _check_healed(vector, "on_after_optimizer_step")


@ours("T13b-no-before_optimizer_step", "the missing hook's work is done all the same, with one warning")
def missing_before_step_is_healed(vector: Vector) -> None:
    _check_healed(vector, "on_before_optimizer_step")


@ours("T13c-no-step_begin", "the missing hook's work is done all the same, with one warning")
def missing_step_begin_is_healed(vector: Vector) -> None:
    _check_healed(vector, "on_step_begin")


@ours("T14-snip-first-step-skipped", "a one-shot at step 0 waits for the first gradients, with one warning")
def one_shot_waits_for_scores(vector: Vector) -> None:
    with pytest.warns(LoopWarning, match="Snip has seen no gradient yet, or only zeros, at step 0") as caught:
        manager, records = replay(vector)
    assert len(caught) == 1
    assert records[0].masks["a"] == vector["expected"]["steps"][0]["masks_after_step_begin"]["a"]  # nothing yet
    score = torch.tensor(vector["expected"]["steps"][0]["scores_after_before_optimizer_step"]["a"]).flatten()
    expected = torch.ones(16, dtype=torch.int).index_fill(0, score.argsort()[:8], 0).view(4, 4)
    assert masks_of(manager) == records[1].masks == {"a": expected.tolist()}
    assert zeros_in(records[0].weights) == {"a": 8}


@ours("T16-frozen-conv-mask", "a layer at its greatest share keeps its zeros where they are")
def capped_convolution_keeps_its_zeros(vector: Vector) -> None:
    _, records = replay(vector)
    # The greatest share is a cap throughout: never more than 24 zeros, and none that was taken comes back.
    first = [record.masks["c1"] for record in records]
    counts = [record.zeros_after_begin["c1"] for record in records]
    assert counts == sorted(counts)
    assert max(counts) == 24
    for before, after in itertools.pairwise(first):
        assert (torch.tensor(after) <= torch.tensor(before)).all()
    assert zeros_in(records[-1].weights) == {"c1": 24, "c2": 20}


@ours("T18-min-iterative", "the least share counts from the start, as far as the schedule asks for it")
def least_share_counts_from_the_start(vector: Vector) -> None:
    _, records = replay(vector)
    assert zeros_in(records[-1].weights) == vector["better"]["final_zero_counts"]
    expected = [
        {"a": 0, "b": 0, "c": 0},
        {"a": 2, "b": 2, "c": 2},
        {"a": 4, "b": 4, "c": 4},
        {"a": 10, "b": 4, "c": 4},
        {"a": 15, "b": 5, "c": 4},
    ]
    assert [record.zeros_after_begin for record in records] == expected


def _check_lasso(vector: Vector) -> None:
    """Each pair of weights loses 0.125 of its norm, whatever its gradient is, and then goes on by SGD with lr=0."""
    _, records = replay(vector)
    before = torch.tensor(vector["inputs"]["layers"][0]["weight"]).view(2, 2, 2)
    norm = before.norm(dim=-1, keepdim=True)
    expected = (before * (norm - 0.125) / norm).view(2, 4)
    torch.testing.assert_close(records[0].weights["a"], expected, rtol=RTOL, atol=0)


@ours("T09b-group_lasso-zero-grad", "blocks are shortened by their own norm, not by that of the gradient")
def lasso_never_lets_weights_grow(vector: Vector) -> None:
    _check_lasso(vector)


@ours("T09c-group_lasso-toplevel-coeff", "reg_coeff counts wherever it is given")
def lasso_has_its_strength_from_anywhere(vector: Vector) -> None:
    _check_lasso(vector)


def _selected(vector: Vector) -> list[str]:
    (pruner,) = pruners_of(manager_for(vector, model_from(vector["inputs"]["model"])))
    return [layer.name for layer in pruner.layers]


@ours("E04-head-name-is-regex", "exactly the head is left out, not every module whose name its name is found in")
def head_takes_no_namesake_along(vector: Vector) -> None:
    assert _selected(vector) == vector["better"]["pruned_layers"]


@ours("E05-fc-swallows-fc1", "exactly the head is left out, not every module whose name its name is found in")
def head_takes_no_longer_name_along(vector: Vector) -> None:
    assert _selected(vector) == vector["better"]["pruned_layers"]


@ours("E11-types-as-string", "one word is a list of one word, not a list of letters")
def one_type_is_a_list_of_one(vector: Vector) -> None:
    assert _selected(vector) == vector["better"]["pruned_layers"]


@ours("E12-no-match", "a selection that matches nothing is an error that lists the layers")
def no_match_is_an_error(vector: Vector) -> None:
    with pytest.raises(ConfigError) as caught:
        manager_for(vector, model_from(vector["inputs"]["model"]))
    message = str(caught.value)
    assert "op_names=['nothing']" in message
    assert "matches no layer" in message
    assert "Layers with weights: l." in message


@ours("E16-conv3d", "weights of rank 5 are pruned like others")
def conv3d_is_pruned(vector: Vector) -> None:
    assert _selected(vector) == ["c", "l"]


@ours("E17-bare-linear", "a model that is nothing but its head is an error that says so")
def bare_linear_is_its_own_head(vector: Vector) -> None:
    with pytest.raises(ConfigError, match=r"leaves no layer to prune: \(root\): classifier head, not pruned"):
        manager_for(vector, model_from(vector["inputs"]["model"]))


@ours("R03-attribute-called-model", "the report counts the whole model, whatever its children are called")
def report_counts_the_whole_model(vector: Vector) -> None:
    both_halved = {
        "elementwise_over_matmul_gemm_conv": 64 / 128,
        "elementwise_over_all": 64 / 144,
        "blockwise_over_matmul_gemm_conv": 64 / 128,
    }
    _check_ratios(_report_of(vector), both_halved)


@ours("R04-tied", "a shared weight is pruned once and counted once")
def report_counts_shared_weights_once(vector: Vector) -> None:
    once = {
        "elementwise_over_matmul_gemm_conv": 8 / 16,
        "elementwise_over_all": 8 / 24,
        "blockwise_over_matmul_gemm_conv": 8 / 16,
    }
    _check_ratios(_report_of(vector), once)


# --------------------------------------------------------------------------------------- the tests

MATCHING = [vector_id for vector_id, vector in VECTORS.items() if is_match(vector)]


@pytest.mark.parametrize("vector_id", MATCHING)
def test_as_inc(vector_id):
    vector = VECTORS[vector_id]
    CHECKS[vector["kind"]](vector)


@pytest.mark.parametrize("vector_id", OURS)
def test_better_than_inc(vector_id):
    assert VECTORS[vector_id]["parity"] in ("optional", "bug")
    reason, check = OURS[vector_id]
    assert reason
    check(VECTORS[vector_id])


def test_no_vector_is_left_out_in_silence():
    others = {vector_id for vector_id, vector in VECTORS.items() if vector["kind"] in ELSEWHERE_KINDS} | {*ELSEWHERE}
    groups = [set(MATCHING), set(OURS), others]
    counted = Counter(vector_id for group in groups for vector_id in group)
    assert set(counted) == set(VECTORS), "neither run nor listed, or listed but not there"
    assert max(counted.values()) == 1, "listed twice"
    assert len(MATCHING) == 55
    assert len(OURS) == 21


def test_count_of_vectors_by_kind(note):
    """Runs all of them once more, so that the printed number holds in any selection of tests."""
    passing: Counter[str] = Counter()
    for vector_id in MATCHING:
        CHECKS[VECTORS[vector_id]["kind"]](VECTORS[vector_id])
        passing[VECTORS[vector_id]["kind"]] += 1
    for _, check in OURS.values():
        assert check
    total = Counter(vector["kind"] for vector in VECTORS.values() if vector["parity"] == "match")
    for kind in MATCH_KINDS:
        assert passing[kind] == total[kind]
    shown = ", ".join(f"{kind} {passing[kind]}/{total[kind]}" for kind in MATCH_KINDS)
    note(f"pruning vectors as INC: {shown}; better than INC: {len(OURS)}")
