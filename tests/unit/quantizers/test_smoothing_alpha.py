"""The search for alpha: candidates, losses by layer and by block, and what layers of one scale agree on."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from inc_torch.core.errors import CalibrationError, ModelError
from inc_torch.quantizers import QuantScheme, QuantSpec, enable_fake_quant, prepare_fake_quant
from inc_torch.quantizers._codes import input_grid, snap, snap_weight
from inc_torch.quantizers._flow import trace_flow
from inc_torch.quantizers._prepare import fake_quant_modules
from inc_torch.quantizers._smoothing import (
    SmoothingGroup,
    SmoothQuant,
    apply_smoothing,
    smoothed_range,
    smoothing_groups,
    smoothing_scale,
)
from inc_torch.quantizers._smoothing_alpha import (
    alpha_candidates,
    block_losses,
    chosen_alphas,
    layer_losses,
    search_alphas,
)
from tests.unit.quantizers.models import tiny_bert
from tests.unit.quantizers.seen import seen_inputs
from tests.unit.quantizers.test_smoothing import IDS, tiny_llama

AUTO = SmoothQuant(alpha="auto")


def prepared(model, *batches, scheme=None):
    prepare_fake_quant(model.eval(), QuantSpec(default=scheme or QuantScheme()))
    return model, seen_inputs(model, batches)


def losses_of(model, inputs, spec=AUTO):
    return layer_losses(model, inputs, spec, smoothing_groups(model, inputs)[0])


def never(model):
    raise AssertionError


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ({"alpha_min": 0.3, "alpha_max": 0.7, "alpha_step": 0.05}, [0.5, 0.3, 0.35, 0.4, 0.45, 0.55, 0.6, 0.65, 0.7]),
        ({"alpha_min": 0.1, "alpha_max": 0.4, "default_alpha": 0.75}, [0.75, 0.1, 0.2, 0.3, 0.4]),
        ({"alpha_min": 0.0, "alpha_max": 0.5, "alpha_step": 0.2}, [0.5, 0.0, 0.2, 0.4]),
        ({"alpha_min": 0.6, "alpha_max": 0.6}, [0.5, 0.6]),
        ({"alpha_min": 0.0, "alpha_max": 3e-5, "alpha_step": 1e-5}, [0.5, 0.0, 1e-5, 2e-5, 3e-5]),
    ],
)
def test_candidates_begin_with_the_default_and_are_exact(fields, expected):
    assert alpha_candidates(replace(AUTO, **fields)) == expected


def loss_by_hand(y, y_q, norm):
    return ((y / norm - y_q / norm).abs() ** 0.5).sum().item()


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4)])
def test_the_loss_of_a_linear_layer_by_hand(shape):
    """A matrix is divided by its greatest value, other outputs sample by sample."""
    x = torch.randn(shape) * torch.tensor([1.0, 30.0, 1.0, 2.0])
    model, inputs = prepared(nn.Linear(4, 3), x)
    losses = losses_of(model, inputs)[""]
    for alpha in (0.5, 0.2, 0.9):
        seen, weight = inputs[""], model.weight.detach()
        greatest = torch.maximum(-seen.channel_low, seen.channel_high).float()
        scale = smoothing_scale(greatest, weight.abs().amax(0), alpha)
        grid = input_grid(*smoothed_range(seen, scale), QuantScheme())
        y = nn.functional.linear(x, weight, model.bias.detach())
        y_q = nn.functional.linear(snap(x * scale.reciprocal(), grid), snap_weight(weight * scale, 0), model.bias)
        norm = y.abs().max() if len(shape) == 2 else y.abs().amax((1, 2), keepdim=True)
        assert losses[alpha] == pytest.approx(loss_by_hand(y, y_q.detach(), norm), rel=1e-5)


def test_weights_of_convolutions_are_rounded_by_output_channel():
    """INC rounds them by input channel, as no kernel does."""
    x = torch.randn(2, 4, 5, 5)
    model, inputs = prepared(nn.Conv2d(4, 6, 3, groups=2), x)
    losses = losses_of(model, inputs)[""]
    trial = copy.deepcopy(model)
    apply_smoothing(trial, inputs, 0.3)
    enable_fake_quant(trial, observe=False)
    y, y_q = model(x).detach(), trial(x).detach()
    assert losses[0.3] == pytest.approx(loss_by_hand(y, y_q, y.abs().amax((1, 2, 3), keepdim=True)), rel=1e-5)


def test_an_output_of_zeros_has_a_loss():
    model, inputs = prepared(nn.Linear(4, 3, bias=False), torch.zeros(2, 4))
    assert set(losses_of(model, inputs)[""].values()) == {0.0}


def test_losses_of_batches_are_added():
    first, second = torch.randn(3, 4), torch.randn(2, 4)
    model, inputs = prepared(nn.Linear(4, 3), first, second)
    alone = [losses_of(model, {"": replace(inputs[""], sample=[x])})[""][0.7] for x in (first, second)]
    assert losses_of(model, inputs)[""][0.7] == pytest.approx(sum(alone))


LOSSES = {"q": {0.5: 3.0, 0.0: 1.0, 1.0: 2.0}, "k": {0.5: 1.5, 0.0: 4.0, 1.0: 1.0}}


@pytest.mark.parametrize(("criterion", "expected"), [("mean", 1.0), ("min", 0.0), ("max", 1.0)])
def test_layers_of_one_scale_agree(criterion, expected):
    spec = replace(AUTO, shared_criterion=criterion)
    assert chosen_alphas(LOSSES, [SmoothingGroup(("q", "k"))], spec) == {"q": expected, "k": expected}
    assert chosen_alphas(LOSSES, [SmoothingGroup(("q",)), SmoothingGroup(("k",))], spec) == {"q": 0.0, "k": 1.0}


def test_of_equal_losses_the_first_wins():
    assert chosen_alphas({"q": {0.5: 1.0, 0.0: 1.0}}, [SmoothingGroup(("q",))], AUTO) == {"q": 0.5}


def test_the_search_changes_nothing_and_finds_less_error_than_the_worst():
    x = torch.randn(2, 6, 8) * torch.linspace(0.1, 40.0, 8)
    model, inputs = prepared(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)), x)
    model.train()
    before = {name: dict(module.__dict__) for name, module in fake_quant_modules(model)}
    alphas = search_alphas(model, inputs, AUTO, never)
    assert {name: dict(module.__dict__) for name, module in fake_quant_modules(model)} == before
    for name, of_layer in losses_of(model, inputs).items():
        assert of_layer[alphas[name]] == min(of_layer.values()) < max(of_layer.values())


def test_the_search_for_folded_scales_sees_the_groups_of_the_flow():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            hidden = self.norm(x)
            return self.a(hidden) + self.b(torch.relu(hidden))

    x = torch.randn(5, 6)
    model, inputs = prepared(Net(), x)
    flow = trace_flow(model, lambda model: model(x))
    spec = replace(AUTO, shared_criterion="min")
    alphas = search_alphas(model, inputs, spec, never, flow)
    groups, _ = smoothing_groups(model, inputs, flow)
    losses = layer_losses(model, inputs, spec, groups)
    best = min(min(of_layer, key=of_layer.get) for of_layer in losses.values())
    assert alphas == {"a": best, "b": best}


def test_a_search_without_a_sample_says_so():
    model, inputs = prepared(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    with pytest.raises(CalibrationError, match=r"inputs of '0', but calibration kept none"):
        search_alphas(model, {"0": replace(inputs["0"], sample=[])}, AUTO, never)


BLOCKWISE = replace(AUTO, do_blockwise=True)


def test_layers_of_a_block_share_the_error_of_its_output():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), nn.Linear(4, 4)])
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    x = torch.randn(5, 4) * torch.tensor([1.0, 20.0, 1.0, 1.0])
    model, inputs = prepared(Blocks(), x)
    groups, _ = smoothing_groups(model, inputs)
    losses = block_losses(model, inputs, BLOCKWISE, lambda model: model(x), groups)
    assert losses.keys() == {"blocks.0.0", "blocks.0.2", "blocks.1"}
    assert losses["blocks.0.0"] == losses["blocks.0.2"] != losses["blocks.1"]

    block = copy.deepcopy(model.blocks[0])
    renamed = {name.removeprefix("blocks.0."): seen for name, seen in inputs.items() if name.startswith("blocks.0.")}
    y = block(x).detach()
    apply_smoothing(block, renamed, 0.2)
    enable_fake_quant(block, observe=False)
    assert losses["blocks.0.0"][0.2] == pytest.approx(loss_by_hand(y, block(x).detach(), y.abs().max()), rel=1e-5)

    alphas = search_alphas(model, inputs, BLOCKWISE, lambda model: model(x))
    assert alphas["head"] == 0.5
    assert alphas["blocks.0.0"] == alphas["blocks.0.2"] == min(losses["blocks.0.0"], key=losses["blocks.0.0"].get)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("make", "layers"), [(tiny_llama, "model.layers."), (tiny_bert, "bert.encoder.layer.")])
def test_blocks_of_transformers(make, layers):
    """With a cache of keys and values, which each forward of a block of Llama adds to."""
    model, inputs = prepared(make(), IDS)
    with torch.no_grad():
        before = model(IDS).logits
        groups, _ = smoothing_groups(model, inputs)
        losses = block_losses(model, inputs, BLOCKWISE, lambda model: model(IDS), groups)
        assert torch.equal(model(IDS).logits, before)
    assert losses.keys() == {name for name in inputs if name.startswith(layers)}
    first, second = ({name: of for name, of in losses.items() if name.startswith(f"{layers}{i}.")} for i in (0, 1))
    assert len({tuple(of_layer.values()) for of_layer in first.values()}) == 1
    assert next(iter(first.values())) != next(iter(second.values()))
    assert all(loss > 0 for of_layer in losses.values() for loss in of_layer.values())


def test_a_model_without_blocks_is_searched_layer_by_layer_only():
    model, inputs = prepared(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    with pytest.raises(ModelError, match=r"Sequential has no torch.nn.ModuleList"):
        search_alphas(model, inputs, BLOCKWISE, never)
