"""Rounding, against the package's own arithmetic of codes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch import kernels
from inc_torch.kernels import Grid, OperandError
from inc_torch.quantizers._codes import dynamic_grid
from inc_torch.quantizers._spec import QuantScheme
from tests.unit.kernels.needed import CHANNELS_LAST, codes, grid, needs_processor, reference_codes, run

pytestmark = needs_processor
GRID = grid(0.0371, 131)


def rounded(values, memory_format=torch.contiguous_format):
    output = torch.full(values.shape, 77, dtype=torch.uint8).to(memory_format=memory_format)
    run(kernels.quantize(values, output, GRID))
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (128, 768), (7, 16), (1, 33), (5,), (2, 3, 19, 23), (2, 5, 9, 17)], ids=str)
def test_codes_are_those_of_the_package_in_every_bit(shape, dtype):
    torch.manual_seed(0)
    values = (torch.randn(shape) * 4).to(dtype)
    values.view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    assert torch.equal(rounded(values), reference_codes(values, GRID))


@pytest.mark.parametrize("width", [1, 16, 17, 18, 40, 224])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_planes_become_pixels(channels, width):
    values = torch.randn(2, channels, 3, width) * 4
    output = rounded(values, CHANNELS_LAST)
    assert output.is_contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(output, reference_codes(values, GRID))
    assert torch.equal(rounded(values.to(memory_format=CHANNELS_LAST), CHANNELS_LAST), output)


def test_ties_go_to_even_codes():
    values = torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75])
    for zero_point in (10, 11):
        output = torch.empty(5, dtype=torch.uint8)
        run(kernels.quantize(values, output, Grid(0.5, zero_point)))
        assert torch.equal(output, reference_codes(values, Grid(0.5, zero_point)))


def test_rows_and_slices_may_be_at_any_distance():
    values, output = torch.randn(9, 100)[:, 10:60], torch.zeros(9, 80, dtype=torch.uint8)
    run(kernels.quantize(values, output[:, 20:70], GRID))
    assert torch.equal(output[:, 20:70], reference_codes(values.contiguous(), GRID))
    assert not output[:, :20].any()
    assert not output[:, 70:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_come_back_from_codes(dtype):
    source = codes(7, 50)
    output = torch.empty(7, 50, dtype=dtype)
    run(kernels.dequantize(source, GRID, output))
    assert torch.equal(output, ((source.float() - 131) * GRID.scale).to(dtype))


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    symmetric=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_dynamic_grid_is_that_of_the_package(values, symmetric):
    given, result = torch.tensor(values, dtype=torch.float32), torch.empty(2)
    run(kernels.dynamic_range(given, result, symmetric))
    expected = dynamic_grid(given, QuantScheme(dynamic=True, symmetric_input=symmetric))
    assert tuple(result.tolist()) == (expected.scale, expected.zero_point)


@pytest.mark.parametrize("shape", [(128, 768), (3, 4, 5), (8192,)], ids=str)
def test_the_dynamic_grid_of_many_rows(shape):
    values, result = torch.randn(shape), torch.empty(2)
    run(kernels.dynamic_range(values, result, False))
    expected = dynamic_grid(values, QuantScheme(dynamic=True))
    assert tuple(result.tolist()) == (expected.scale, expected.zero_point)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_grid_and_gives_nan(value):
    values, result, rounded_codes = torch.randn(5, 20), torch.empty(2), codes(5, 20)
    values[3, 4] = value
    output, weight = torch.zeros(5, 6), torch.ones(6, 20, dtype=torch.int8)
    run(
        kernels.dynamic_range(values, result, False),
        kernels.quantize(values, rounded_codes, None, dynamic=result),
        kernels.linear(rounded_codes, kernels.pack_linear(weight), None, torch.ones(6), None, output, dynamic=result),
    )
    assert result[0].isnan()
    assert output.isnan().all()


def test_a_dynamic_linear_layer_agrees_with_its_parts():
    values, result, rounded_codes = torch.randn(5, 20), torch.empty(2), codes(5, 20)
    run(kernels.dynamic_range(values, result, False), kernels.quantize(values, rounded_codes, None, dynamic=result))
    scale, zero_point = result.tolist()
    assert torch.equal(rounded_codes, reference_codes(values, Grid(scale, int(zero_point))))


def test_wrong_operands_are_refused_when_the_step_is_built():
    values, output = torch.randn(4, 6), codes(4, 6)
    for build, message in (
        (lambda: kernels.quantize(values.double(), output, GRID), "input is float64, expected float32 or bfloat16"),
        (lambda: kernels.quantize(values, values, GRID), "output is float32, expected uint8"),
        (lambda: kernels.quantize(values, output[:3], GRID), r"output is of shape \(3, 6\), expected \(4, 6\)"),
        (lambda: kernels.quantize(values[:0], output[:0], GRID), "input is empty"),
        (lambda: kernels.quantize(values, output, None), "either a grid or `dynamic`"),
        (lambda: kernels.quantize(values, output, GRID, dynamic=torch.ones(2)), "either a grid or `dynamic`"),
        (lambda: kernels.quantize(values, output, None, dynamic=torch.ones(3)), "expected two numbers"),
        (lambda: kernels.quantize(torch.randn(6, 8)[::2, ::2], codes(3, 4), GRID), "dense last dimension"),
        (lambda: kernels.dynamic_range(torch.randn(4, 6).T[::2], torch.empty(2), False), "dense rows"),
        (lambda: kernels.dequantize(output, GRID, output), "output is uint8"),
    ):
        with pytest.raises(OperandError, match=message):
            build()


@pytest.mark.parametrize(
    ("scale", "zero_point"), [(0.0, 0), (-1.0, 0), (math.nan, 0), (math.inf, 0), (1.0, -1), (1.0, 256)]
)
def test_a_grid_that_means_nothing_is_refused(scale, zero_point):
    with pytest.raises(ValueError, match=r"Grid\.(scale|zero_point)="):
        Grid(scale, zero_point)
