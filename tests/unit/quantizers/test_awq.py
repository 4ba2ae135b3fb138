"""AWQ and TEQ on tensors: INC's statistics, and less error at the output than rounding to the nearest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from inc_torch.quantizers import (
    TeqSettings,
    WeightOnlyScheme,
    learn_scales,
    learnable_scales,
    output_changes,
    search_clips,
    search_scale,
)
from inc_torch.quantizers._awq import awq_scale, weight_importance
from inc_torch.quantizers._weight_only import decoded, round_to_nearest, straight_through

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text(encoding="utf-8"))[
    "weight_only"
]
SCHEMES = [WeightOnlyScheme(3, 16), WeightOnlyScheme(4, 32, symmetric=False), WeightOnlyScheme(3, -1, full_range=True)]


def outlying(seed=0, tokens=512, width=64, outputs=32):
    """Inputs of which few channels are great, as in language models."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.where(torch.rand(width, generator=generator) < 0.1, 20.0, 1.0)
    return torch.randn(tokens, width, generator=generator) * sizes, torch.randn(outputs, width, generator=generator)


def moments(inputs):
    return inputs.T @ inputs / len(inputs)


def rounded(weight, scheme, scale=None, clips=1.0):
    scale = torch.ones(weight.shape[1]) if scale is None else scale
    return decoded(*round_to_nearest(weight * scale, scheme, clips), scheme.group_size) / scale


def error(inputs, weight, values):
    return ((inputs @ (values - weight).T) ** 2).mean().item()


@pytest.mark.parametrize("group", [-1, 4])
def test_the_importance_of_weights_is_that_of_inc(group):
    expected = torch.tensor(VECTORS["awq_w_max"][f"gs{group}"])
    assert_close(weight_importance(torch.tensor(VECTORS["W"]), group), expected, rtol=0, atol=0)


def test_the_magnitude_of_inputs_is_that_of_inc():
    from inc_torch.quantization._seen import SeenInputs

    seen = SeenInputs(8, torch.device("cpu"))
    for part in torch.tensor(VECTORS["gptq_X"]).split(2):
        seen.add(part)
    assert_close(seen.magnitudes(), torch.tensor(VECTORS["awq_x_max"]), rtol=1e-6, atol=0)


def test_a_last_group_that_is_shorter_has_its_own_greatest_weight():
    assert weight_importance(torch.tensor([[4.0, 2.0, 8.0]]), 2).tolist() == [1.0, 0.5, 1.0]


def test_the_scale_by_hand():
    scale = awq_scale(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 0.25]), 0.5)
    expected = torch.tensor([4.0, 2.0]) / (4.0 * 2.0) ** 0.5
    assert_close(scale, expected)


def test_inputs_that_are_always_zero_change_no_other_scale():
    inputs, weights = torch.tensor([4.0, 1.0]), torch.tensor([0.5, 1.0])
    alone = awq_scale(inputs, weights, 0.3)
    beside = awq_scale(torch.tensor([4.0, 1.0, 0.0, 3.0]), torch.tensor([0.5, 1.0, 1.0, 0.0]), 0.3)
    assert torch.equal(beside, torch.cat([alone, torch.ones(2)]))
    assert torch.equal(awq_scale(torch.zeros(2), weights, 0.3), torch.ones(2))


def test_the_change_of_outputs_is_the_mean_over_tokens():
    inputs, weight = outlying()
    difference = torch.randn(weight.shape)
    assert_close(output_changes(difference, moments(inputs)), (inputs @ difference.T).square().mean(0))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_scale_is_the_best_of_all_ratios_and_better_than_none(scheme, seed):
    inputs, weight = outlying(seed)
    scale = search_scale([(weight, scheme)], inputs.abs().mean(0), moments(inputs))
    reached = error(inputs, weight, rounded(weight, scheme, scale))
    assert reached < 0.8 * error(inputs, weight, rounded(weight, scheme))
    importance = weight_importance(weight, scheme.group_size)
    others = [awq_scale(inputs.abs().mean(0), importance, step / 20) for step in range(20)]
    least = min(error(inputs, weight, rounded(weight, scheme, other)) for other in others)
    assert_close(reached, least, rtol=1e-4, atol=0)


def test_layers_that_share_a_scale_count_in_shares_of_their_own_error():
    """One layer has outputs a thousand times as great: the other one is heard all the same."""
    inputs, weight = outlying()
    scheme = WeightOnlyScheme(3, 16)
    _, other = outlying(seed=5)
    together = search_scale([(weight, scheme), (other, scheme)], inputs.abs().mean(0), moments(inputs))
    loud = search_scale([(1000 * weight, scheme), (other, scheme)], inputs.abs().mean(0), moments(inputs))
    assert_close(together, loud)


def test_no_scale_where_none_is_better():
    """All weights lie on the grid, so that rounding loses nothing."""
    weight = torch.tensor([[7.0, -3.0, 1.0, 0.0], [2.0, 7.0, -7.0, 4.0]])
    inputs = torch.randn(64, 4)
    assert search_scale([(weight, WeightOnlyScheme(4, -1))], inputs.abs().mean(0), moments(inputs)) is None


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_each_output_is_clipped_where_its_own_error_is_least(scheme):
    inputs, weight = outlying()
    scale = search_scale([(weight, scheme)], inputs.abs().mean(0), moments(inputs))
    clips = search_clips(weight, scheme, moments(inputs), scale)
    ratios = torch.tensor([1.0 - step / 100 for step in range(10)])
    by_hand = torch.stack(
        [(inputs @ (rounded(weight, scheme, scale, ratio) - weight).T).square().mean(0) for ratio in ratios.tolist()]
    )
    assert len(set(clips.tolist())) > 1
    chosen = by_hand[(clips.unsqueeze(0) - ratios.unsqueeze(1)).abs().argmin(0), torch.arange(len(weight))]
    assert_close(chosen, by_hand.amin(0), rtol=1e-3, atol=0)
    assert error(inputs, weight, rounded(weight, scheme, scale, clips)) < error(
        inputs, weight, rounded(weight, scheme, scale)
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_pruned_weights_stay_zero(scheme):
    inputs, weight = outlying()
    weight[torch.rand(weight.shape) < 0.5] = 0
    scale = search_scale([(weight, scheme)], inputs.abs().mean(0), moments(inputs))
    clips = search_clips(weight, scheme, moments(inputs), scale)
    assert (rounded(weight, scheme, scale, clips)[weight == 0] == 0).all()


# ---------------------------------------------------------------------------- TEQ


@pytest.mark.parametrize("scheme", [*SCHEMES, WeightOnlyScheme(3, 48)], ids=str)
def test_the_values_with_gradients_are_those_without(scheme):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    values = straight_through(weight, scheme)
    assert_close(values.detach(), rounded(weight.detach(), scheme))
    values.sum().backward()
    assert weight.grad.isfinite().all()


def test_the_gradient_is_that_of_a_range_that_grows():
    """Where codes do not change, the values are codes times the range: a second way to the same gradient."""
    scheme = WeightOnlyScheme(3, -1)
    weight = torch.tensor([[1.0, 0.4, -0.7]], requires_grad=True)
    straight_through(weight, scheme).square().sum().backward()
    step = 1e-3
    grown = weight.detach().clone()
    grown[0, 0] += step
    numeric = (rounded(grown, scheme).square().sum() - rounded(weight.detach(), scheme).square().sum()) / step
    # Of the values -0.7 and 0.4 the codes are fixed; that of the greatest one follows it.
    codes, values = torch.tensor([3.0, 1.0, -2.0]), rounded(weight.detach(), scheme)[0]
    assert_close(numeric.item(), (2 * values * codes / 3).sum().item(), rtol=1e-2, atol=0)
    through_range = 2 * values[0] + (2 * values[1:] * (codes[1:] / 3 - weight.detach()[0, 1:])).sum()
    assert_close(weight.grad[0, 0], through_range, rtol=1e-4, atol=0)


def test_learned_scales_bring_the_error_down_and_leave_the_layers_as_they_were():
    inputs, weight = outlying(width=32, outputs=16)
    layer = nn.Linear(32, 16, bias=False)
    layer.weight.data = weight.clone()
    scheme, expected = WeightOnlyScheme(3, -1), inputs @ weight.T
    settings = TeqSettings(steps=150, learning_rate=0.02)
    with learnable_scales({"": (layer, layer.weight, scheme)}, [("",)]) as scales:
        assert [name for name, _ in layer.named_parameters()] == ["weight", "scale_of_inputs"]
        before = (layer(inputs) - expected).square().mean().item()
        learn_scales(scales, lambda _: (layer(inputs) - expected).square().mean(), settings, iter(range(150)))
        after = (layer(inputs) - expected).square().mean().item()
        scale = scales[0].detach().clone()
    assert after < 0.5 * before
    assert_close(after, error(inputs, weight, rounded(weight, scheme, scale)), rtol=1e-3, atol=0)
    assert layer.weight.grad is None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert "forward" not in layer.__dict__
    assert_close(layer(inputs), expected)


def test_the_pace_of_learning():
    """With one loss of slope 1 Adam moves a scale by the learning rate of each step."""
    scale, moved = nn.Parameter(torch.ones(1)), []

    def loss(_):
        moved.append(scale.item())
        return scale.sum()

    learn_scales([scale], loss, TeqSettings(steps=40, learning_rate=0.01), iter(range(40)))
    steps = -torch.tensor([*moved, scale.item()]).diff() / 0.01
    assert_close(steps[:3], torch.tensor([0.5, 1.0, 1.0]), rtol=1e-3, atol=1e-3)
    assert_close(steps[-1].item(), 1 / 38, rtol=1e-2, atol=1e-3)


def test_scales_stay_above_zero():
    scale = nn.Parameter(torch.ones(2))
    learn_scales([scale], lambda _: scale.sum(), TeqSettings(steps=20, learning_rate=1.0), iter(range(20)))
    assert_close(scale.detach(), torch.full((2,), 1e-4))
