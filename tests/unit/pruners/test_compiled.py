"""Pruning with compiled kernels does what it does without them, and leaves to torch what they cannot do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from inc_torch import kernels
from inc_torch.core.errors import LoopWarning
from inc_torch.pruners import CRITERIA, Limits, Pruner
from inc_torch.pruners._one_pass import OnePass
from tests.unit.kernels.needed import needs_processor
from tests.unit.pruners.make import backward, spec_of, stack
from tests.unit.pruners.vectors import Conv1D

pytestmark = needs_processor

PATTERNS = ["1x1", "2x1", "4x1", "16x1", "channelx1", "1xchannel", "2x2", "2:4", "1:2", "3:8"]


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch):
    """These tests compare with and without kernels, whatever the environment says."""
    monkeypatch.setenv("INC_TORCH_KERNELS", "1")


@pytest.fixture
def used(monkeypatch):
    """Names of the kernels that ran, in order."""
    names: list[str] = []
    run_program = kernels.Program.run

    def noting(program):
        names.extend(step.kind for step in program.steps)
        run_program(program)

    monkeypatch.setattr(kernels.Program, "run", noting)
    return names


def trained(pattern: str, criterion: str = "snip_momentum", **options: object) -> Pruner:
    """Steps with gradients of integers, so that sums are exact in any order."""
    torch.manual_seed(4)
    model = stack(nn.Linear(48, 32, bias=False), nn.Linear(32, 64, bias=False))
    for module in model[:2]:
        module.weight.data = torch.randint(-8, 9, module.weight.shape).float()
    reduction = CRITERIA.get(criterion).reduction or options.pop("reduction", "mean")
    limits = Limits(0.1, 0.8 if ":" not in pattern else 0.45)
    target = 0.3 if ":" in pattern else 0.6
    spec = spec_of(
        pattern, criterion, start=1, end=7, frequency=2, target=target, limits=limits, reduction=reduction, **options
    )
    pruner = Pruner(spec, model)
    for step in range(9):
        pruner.begin_step(step)
        for module in model[:2]:
            module.weight.grad = torch.randint(-8, 9, module.weight.shape).float()
        pruner.collect_scores()
        with torch.no_grad():
            for module in model[:2]:
                module.weight.sub_(module.weight.grad)
        pruner.mask_weights()
    pruner.model = model
    return pruner


def require_equal(found: Pruner, expected: Pruner) -> None:
    assert found.sparsity == expected.sparsity > 0.2
    assert list(found.findings()) == list(expected.findings())
    for name, mask in expected.masks.items():
        assert torch.equal(found.masks[name], mask)
        assert torch.equal(found.model.get_submodule(name).weight, expected.model.get_submodule(name).weight)
    for name, scores in expected.scores.items():
        torch.testing.assert_close(found.scores[name], scores, rtol=2e-7, atol=0)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("criterion", CRITERIA.names())
@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_and_weights_are_those_of_torch(pattern, criterion, scope, used, monkeypatch):
    found = trained(pattern, criterion, scope=scope)
    assert "keep_largest" in used
    used.clear()
    monkeypatch.setenv("INC_TORCH_KERNELS", "0")
    require_equal(found, trained(pattern, criterion, scope=scope))
    assert used == []


@pytest.mark.parametrize("reduction", ["sum", "max"])
@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_other_reductions(pattern, reduction, used, monkeypatch):
    found = trained(pattern, reduction=reduction)
    assert {"block_scores", "keep_largest"} <= set(used)
    monkeypatch.setenv("INC_TORCH_KERNELS", "0")
    require_equal(found, trained(pattern, reduction=reduction))


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_short_scores(pattern, used, monkeypatch):
    found = trained(pattern, has_short_scores=True)
    assert "block_scores" in used
    monkeypatch.setenv("INC_TORCH_KERNELS", "0")
    expected = trained(pattern, has_short_scores=True)
    assert {score.dtype for score in found.scores.values()} == {torch.bfloat16}
    require_equal(found, expected)


@pytest.mark.parametrize(
    ("make", "pattern", "expected"),
    [
        (lambda: nn.Linear(16, 16), "4x1", {"block_scores", "zero_blocks", "keep_largest"}),
        (lambda: nn.Conv2d(16, 16, 1), "4x1", {"block_scores", "zero_blocks", "keep_largest"}),
        (
            lambda: nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last),
            "4x1",
            {"block_scores", "zero_blocks", "keep_largest"},
        ),
        (lambda: nn.Conv2d(16, 16, 3), "4x1", {"keep_largest"}),
        (lambda: Conv1D(16, 16), "4x1", {"keep_largest"}),
        (lambda: nn.Linear(16, 16), "2x2", {"keep_largest"}),
        (lambda: nn.Linear(16, 16).bfloat16(), "4x1", {"keep_largest"}),
        (lambda: nn.Linear(16, 16).double(), "4x1", {"keep_largest"}),
        (lambda: nn.Linear(16, 16), "2:4", {"block_scores", "zero_blocks", "pick_in_groups", "keep_largest"}),
        (lambda: nn.Conv2d(16, 16, 3), "2:4", {"pick_in_groups", "keep_largest"}),
    ],
)
def test_what_runs_on_kernels(make, pattern, expected, used):
    layer = make()
    model = stack(layer)
    pruner = Pruner(spec_of(pattern, "snip_momentum", start=1, end=1, target=0.5), model)
    layer.weight.grad = torch.randn_like(layer.weight)
    pruner.collect_scores()
    pruner.begin_step(1)
    assert set(used) - {"count_digits", "collect_prefix"} == expected
    assert int((layer.weight == 0).sum()) == layer.weight.numel() // 2


# ------------------------------------------------------------------------------------------ one pass


@pytest.mark.parametrize("criterion", ["snip", "snip_momentum"])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
@pytest.mark.parametrize("bad", [math.inf, math.nan, 3e38])
def test_scores_stay_as_they_are_if_the_last_layer_is_not_finite(bad, pattern, criterion):
    """The third one is finite, but its product with the weight is not."""
    model = stack(nn.Linear(20, 8), nn.Linear(8, 8))
    pruner = Pruner(spec_of(pattern, criterion, start=9, end=9), model)
    for _ in range(3):
        backward(model, 20)
        pruner.collect_scores()
    before = {name: score.clone() for name, score in pruner.scores.items()}
    backward(model, 20)
    with torch.no_grad():
        model[1].weight[7, 7], model[1].weight.grad[7, 7] = 4.0, bad
    with pytest.warns(LoopWarning, match="Non-finite values in the gradient or weight of '1'"):
        pruner.collect_scores()
    assert all(torch.equal(score, before[name]) for name, score in pruner.scores.items())
    backward(model, 20)
    pruner.collect_scores()
    assert not all(torch.equal(score, before[name]) for name, score in pruner.scores.items())


@pytest.mark.parametrize("pattern", ["1x1", "2x1", "4x1", "2:4"])
def test_no_memory_is_taken_in_later_steps(pattern, monkeypatch):
    model = stack(nn.Linear(20, 8), nn.Linear(8, 8))
    pruner = Pruner(spec_of(pattern, "snip_momentum", start=9, end=9), model)
    places = []
    for step in range(6):
        if step == 2:
            monkeypatch.setattr(OnePass, "_new", None)
        backward(model, 20)
        pruner.collect_scores()
        places.append(pruner._scores.data_ptr())
    assert len(set(places)) == (1 if pattern in ("1x1", "2:4") else 2)


def test_a_saved_state_does_not_change_with_the_scores():
    model = stack(nn.Linear(20, 8))
    pruner = Pruner(spec_of("1x1", "snip_momentum", start=9, end=9), model)
    backward(model, 20)
    pruner.collect_scores()
    saved = pruner.state_dict()["scores"]["0.weight"]
    before = saved.clone()
    backward(model, 20)
    pruner.collect_scores()
    assert torch.equal(saved, before)


def test_pruned_weights_that_are_not_finite_become_zero():
    """A product with zero would be no number, for ever."""
    model = stack(nn.Linear(20, 8, bias=False))
    pruner = Pruner(spec_of("4x1"), model)
    pruner.begin_step(0)
    with torch.no_grad():
        model[0].weight[~pruner.masks["0"]] = math.inf
    pruner.mask_weights()
    assert model[0].weight.isfinite().all()
