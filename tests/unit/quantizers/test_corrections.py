"""Correcting weights, and the sensitivity of tensors: INC's numbers and the edges of the formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from inc_torch.core.errors import ModelError
from inc_torch.quantizers._codes import snap_weight
from inc_torch.quantizers._corrections import weight_correction
from inc_torch.quantizers._sensitivity import normalised_mse

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text(encoding="utf-8"))[
    "metrics"
]


def test_the_correction_of_inc_along_axis_1():
    case = VECTORS["weight_correction"]
    weight, rounded, result = (torch.tensor(case[name], dtype=torch.float64) for name in ("w", "qw", "result"))
    torch.testing.assert_close(weight_correction(weight, rounded, axis=1), result)
    torch.testing.assert_close(weight_correction(weight, rounded, axis=-3), result)


def test_the_correction_restores_mean_and_spread_of_every_output():
    weight = torch.randn(5, 3, 3, dtype=torch.float64) + 1
    rounded = 0.7 * weight - 0.2  # an affine error is undone
    corrected = 0.7 * weight_correction(weight, rounded) - 0.2
    torch.testing.assert_close(corrected.std((1, 2)), weight.std((1, 2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(weight_correction(weight, rounded)[2:3], weight_correction(weight[2:3], rounded[2:3]))


def test_pruned_zeros_stay_zeros():
    weight = torch.randn(8, 16).masked_fill(torch.rand(8, 16) < 0.5, 0.0)
    corrected = weight_correction(weight, snap_weight(weight, 0, bits=4))
    assert torch.equal(corrected == 0, weight == 0)
    assert not torch.equal(corrected, weight)


def test_a_channel_that_rounding_made_constant_stays():
    weight = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 4.0]])
    rounded = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    corrected = weight_correction(weight, rounded)
    assert torch.equal(corrected[0], weight[0])
    assert not torch.equal(corrected[1], weight[1])


def test_the_correction_keeps_the_dtype():
    weight = torch.randn(2, 4, dtype=torch.bfloat16)
    assert weight_correction(weight, weight.float()).dtype == torch.bfloat16


@pytest.mark.parametrize(("shape", "axis"), [((2, 4), 0), ((2, 3), 2), ((2, 3), -3)])
def test_a_correction_of_other_shapes_or_axes_is_refused(shape, axis):
    with pytest.raises(ModelError, match="weight_correction was given a weight of shape"):
        weight_correction(torch.ones(2, 3), torch.ones(shape), axis)


def test_a_vector_has_no_channels():
    with pytest.raises(ModelError, match="2 axes or more"):
        weight_correction(torch.ones(3), torch.ones(3))


def test_the_normalised_error_of_inc():
    case = VECTORS["mse_gap"]
    assert normalised_mse(torch.tensor(case["fp32"]), torch.tensor(case["dequant"])) == pytest.approx(case["gap"])


def test_factors_and_offsets_are_invisible():
    values = torch.randn(4, 5, dtype=torch.float64)
    assert normalised_mse(values, 3 * values - 7) == pytest.approx(0, abs=1e-20)


def test_constant_tensors_are_all_zeros():
    constant, varied = torch.full((4,), 3.0), torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert normalised_mse(constant, constant + 1) == 0
    assert normalised_mse(varied, constant) == normalised_mse(constant, varied) == 0.75


def test_values_that_are_not_finite_are_not_hidden():
    assert math.isnan(normalised_mse(torch.tensor([0.0, math.nan]), torch.tensor([0.0, 1.0])))
    assert math.isnan(normalised_mse(torch.tensor([0.0, math.inf]), torch.tensor([0.0, 1.0])))


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((0,), (0,))])
def test_tensors_without_a_counterpart_are_refused(shapes):
    with pytest.raises(ModelError, match="normalised_mse was given shapes"):
        normalised_mse(*map(torch.ones, shapes))
