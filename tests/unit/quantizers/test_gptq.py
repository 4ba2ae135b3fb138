"""GPTQ: INC's numbers, and less error at the output than rounding to nearest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from inc_torch.core.errors import ModelError
from inc_torch.quantizers import GptqSettings, WeightOnlyScheme, round_by_gptq
from inc_torch.quantizers._weight_only import decoded, round_to_nearest

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text(encoding="utf-8"))[
    "weight_only"
]
WEIGHT = torch.tensor(VECTORS["W"])


def test_the_vectors_are_there():
    assert len(VECTORS["gptq"]) == 5


@pytest.mark.parametrize("index", range(5))
def test_values_scales_and_order_are_those_of_inc(index):
    case = VECTORS["gptq"][index]
    args = case["args"]
    scheme = WeightOnlyScheme(args["bits"], args["group_size"], symmetric=args["sym"])
    settings = GptqSettings(args["percdamp"], args["act_order"], args["block_size"], args["static_groups"])
    made = round_by_gptq(WEIGHT, torch.tensor(case["H"]), scheme, settings)
    assert_close(made.values, torch.tensor(case["Q"]), rtol=0, atol=1e-4)
    assert_close(made.rounded.scales, torch.tensor(case["scale"]), rtol=0, atol=1e-4)
    if not args["sym"]:
        assert_close(made.rounded.zero_points.float(), torch.tensor(case["zero"]).float())
    inputs = torch.tensor(VECTORS["gptq_X"])
    error = ((inputs @ (made.values - WEIGHT).T) ** 2).sum()
    assert_close(error.item(), case["sq_err_out"], rtol=1e-3, atol=1e-4)
    codes = made.rounded.codes.float()
    zeros = 0.0 if args["sym"] else made.rounded.zero_points[:, made.group_of].float()
    assert_close((codes - zeros) * made.rounded.scales[:, made.group_of], made.values)
    if case["perm"] is not None and not args["static_groups"]:
        order = torch.tensor(case["perm"])
        assert made.group_of[order].tolist() == [column // args["group_size"] for column in range(8)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (3, -1), (2, 16)])
def test_outputs_change_less_than_by_rounding_to_nearest(symmetric, bits, group):
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(64, 64, generator=generator)
    inputs = torch.randn(512, 64, generator=generator) @ mixed
    weight = torch.randn(32, 64, generator=generator)
    scheme = WeightOnlyScheme(bits, group, symmetric=symmetric)
    hessian = inputs.T @ inputs
    nearest = decoded(*round_to_nearest(weight, scheme), group)

    def error(values):
        return ((inputs @ (values - weight).T) ** 2).mean().item()

    for settings in (GptqSettings(), GptqSettings(act_order=True, static_groups=True), GptqSettings(block_size=8)):
        assert error(round_by_gptq(weight, hessian, scheme, settings).values) < 0.7 * error(nearest)


def test_the_block_size_changes_nothing_without_groups():
    inputs, weight = torch.randn(100, 48), torch.randn(8, 48)
    scheme, hessian = WeightOnlyScheme(4, -1), inputs.T @ inputs
    whole = round_by_gptq(weight, hessian, scheme, GptqSettings(block_size=48))
    for size in (1, 7, 16, 128):
        assert_close(round_by_gptq(weight, hessian, scheme, GptqSettings(block_size=size)).values, whole.values)


def test_a_factor_of_the_hessian_changes_nothing():
    inputs, weight = torch.randn(100, 16), torch.randn(8, 16)
    hessian = inputs.T @ inputs
    first, second = (
        round_by_gptq(weight, scale * hessian, WeightOnlyScheme(), GptqSettings()) for scale in (1.0, 0.01)
    )
    assert_close(first.values, second.values)


def test_inputs_that_are_always_zero_and_short_groups():
    inputs, weight = torch.randn(100, 20), torch.randn(8, 20)
    inputs[:, [3, 19]] = 0
    made = round_by_gptq(weight, inputs.T @ inputs, WeightOnlyScheme(4, 8), GptqSettings(act_order=True))
    assert (made.values[:, [3, 19]] == 0).all()
    assert made.rounded.scales.shape == (8, 3)
    assert sorted(made.group_of.tolist()) == [0] * 8 + [1] * 8 + [2] * 4
    assert WEIGHT.equal(torch.tensor(VECTORS["W"]))


def test_a_hessian_that_is_none_is_refused():
    hessian = torch.eye(4)
    hessian[0, 1] = hessian[1, 0] = float("nan")
    with pytest.raises(ModelError, match="Hessian without a Cholesky factor"):
        round_by_gptq(torch.randn(2, 4), hessian, WeightOnlyScheme(), GptqSettings())


def test_rows_without_a_negative_weight_use_the_whole_grid():
    weight = torch.rand(4, 16) + 0.1
    made = round_by_gptq(weight, torch.eye(16), WeightOnlyScheme(4, -1), GptqSettings())
    assert (made.values - weight).abs().max() <= made.rounded.scales.max() / 2 * 1.01


def test_zeros_of_a_pruned_layer_stay():
    inputs, weight = torch.randn(512, 64), torch.randn(32, 64)
    weight[torch.rand(32, 64) < 0.8] = 0
    for symmetric in (True, False):
        scheme = WeightOnlyScheme(3, 16, symmetric=symmetric)
        made = round_by_gptq(weight, inputs.T @ inputs, scheme, GptqSettings(act_order=True))
        assert (made.values[weight == 0] == 0).all()
        assert (made.values[weight != 0] != 0).float().mean() > 0.5
