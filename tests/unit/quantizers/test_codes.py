"""The arithmetic of int8, against closed forms and a naive second method."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inc_torch.quantizers._codes import (
    InputGrid,
    decode,
    encode,
    input_grid,
    quantize_weight,
    snap,
    snap_weight,
    usable_scale,
)
from inc_torch.quantizers._spec import QuantScheme

DEFAULT = QuantScheme()
REDUCED = QuantScheme(input_bits=7)
SYMMETRIC = QuantScheme(symmetric_input=True)
BOTH = QuantScheme(symmetric_input=True, input_bits=7)

ends = st.floats(0, 1e6, width=32)


def naive_codes(values, grid):
    """Round the exact quotient: float64, divide, round, add, clamp."""
    exact = (values.double() / grid.scale).round() + grid.zero_point
    return exact.clamp(0, grid.top).to(torch.uint8)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (DEFAULT, InputGrid(2.0, 5, 255)),
        (REDUCED, InputGrid(usable_scale(510 / 127), 2, 127)),
        (SYMMETRIC, InputGrid(usable_scale(500 / 127.5), 128, 255)),
        (BOTH, InputGrid(usable_scale(500 / 63.5), 63, 127)),
    ],
)
def test_grid_of_a_range(scheme, expected):
    assert input_grid(-10.0, 500.0, scheme) == expected


@given(ends, ends, st.sampled_from([DEFAULT, REDUCED, SYMMETRIC, BOTH]))
def test_grid_covers_the_range_and_holds_zero(low, high, scheme):
    grid = input_grid(-low, high, scheme)
    assert grid.scale > 0
    assert 0 <= grid.zero_point <= grid.top
    half_a_step = 0.5 * grid.scale
    assert -grid.zero_point * grid.scale <= -low + 1.001 * half_a_step
    assert (grid.top - grid.zero_point) * grid.scale >= high - 1.001 * half_a_step
    assert decode(encode(torch.zeros(1), grid, grid.shift), grid).item() == 0.0


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-31])
def test_scales_that_cannot_be_divided_by_become_one(scale):
    assert usable_scale(scale) == 1.0


def test_scale_is_a_float32_number():
    scale = usable_scale(0.1)
    assert scale != 0.1
    assert torch.tensor(scale).item() == scale


def test_a_range_of_zeros_gives_codes_and_no_nan():
    grid = input_grid(0.0, 0.0, DEFAULT)
    assert grid == InputGrid(1.0, 0, 255)
    assert snap(torch.tensor([0.0, 3.2]), grid).tolist() == [0.0, 3.0]


@pytest.mark.parametrize("grid", [InputGrid(0.5, 0, 255), InputGrid(0.25, 255, 255), InputGrid(1.0, 64, 127)])
def test_encode_closed_form(grid):
    codes = torch.arange(grid.top + 1)
    values = (codes - grid.zero_point) * grid.scale
    assert torch.equal(encode(values, grid, grid.shift), codes.to(torch.uint8))
    assert torch.equal(decode(codes.to(torch.uint8), grid), values)


def test_encode_clips_everything_beyond():
    grid = InputGrid(1.0, 10, 255)
    values = torch.tensor([-10.4, -10.6, -1e30, -math.inf, 245.4, 245.6, 1e30, math.inf])
    assert encode(values, grid, grid.shift).tolist() == [0, 0, 0, 0, 255, 255, 255, 255]


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.integers(0, 255))
def test_encode_agrees_with_the_naive_way(seed, scale, zero_point):
    grid = InputGrid(usable_scale(scale), zero_point, 255)
    values = torch.randn(512, generator=torch.Generator().manual_seed(seed)) * 100 * scale
    codes, expected = encode(values, grid, grid.shift), naive_codes(values, grid)
    # float32 holds code + fraction to 2**-16 of a code: only what lies that near to a tie may differ, by one.
    quotient = values.double() / grid.scale
    near_tie = (quotient - quotient.floor() - 0.5).abs() < 2**-14
    assert torch.equal(codes[~near_tie], expected[~near_tie])
    assert (codes.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_snap_is_decode_of_encode(dtype):
    grid = InputGrid(usable_scale(0.037), 91, 255)
    values = (torch.randn(1000) * 3).to(dtype)
    snapped = snap(values, grid)
    assert snapped.dtype == dtype
    assert torch.equal(snapped, decode(encode(values, grid, grid.shift), grid).to(dtype))


LAYOUTS = {
    "contiguous": lambda: torch.randn(3, 200, 600),
    "transposed": lambda: torch.randn(600, 200, 3).transpose(0, 2),
    "cut": lambda: torch.randn(3, 200, 700)[..., 50:650],
    "broadcast": lambda: torch.randn(3, 1, 600).expand(3, 200, 600),
    "channels last": lambda: torch.randn(5, 30, 50, 60).to(memory_format=torch.channels_last),
    "bfloat16": lambda: torch.randn(3, 200, 600).bfloat16(),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_big_tensors_are_encoded_in_pieces_alike(make):
    values = make()
    before = values.clone()
    grid = InputGrid(usable_scale(0.02), 120, 255)
    small = torch.cat([encode(row, grid, grid.shift) for row in values.reshape(len(values), -1).split(1)])
    codes = encode(values, grid, grid.shift)
    assert codes.shape == values.shape
    assert torch.equal(codes.reshape(len(values), -1), small)
    assert torch.equal(values, before)


def test_encode_of_a_tensor_with_a_gradient_is_detached():
    grid = InputGrid(1.0, 0, 255)
    codes = encode(torch.ones(3, requires_grad=True), grid, grid.shift)
    assert not codes.requires_grad
    assert codes.tolist() == [1, 1, 1]


def naive_weight(weight, axis, bits):
    rows = weight.double().movedim(axis, 0)
    top = 2 ** (bits - 1)
    codes, scales = [], []
    for row in rows:
        scale = (row.abs().max() / (top - 0.5)).float().double() or torch.tensor(1.0)
        scales.append(float(scale))
        codes.append((row / scale).round().clamp(-top, top - 1))
    return torch.stack(codes).movedim(0, axis), scales


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("axis", [0, 1])
def test_weight_codes_per_channel(axis, bits):
    weight = torch.randn(6, 5, 3)
    codes, scale = quantize_weight(weight, axis, bits)
    expected, scales = naive_weight(weight, axis, bits)
    assert codes.dtype == torch.int8
    assert torch.equal(codes, expected.to(torch.int8))
    assert torch.allclose(scale.flatten(), torch.tensor(scales))
    assert scale.shape == ((6, 1, 1) if axis == 0 else (1, 5, 1))
    outermost = codes.int().abs().amax([d for d in range(3) if d != axis])
    assert set(outermost.tolist()) <= {2 ** (bits - 1), 2 ** (bits - 1) - 1}


def test_weight_codes_per_tensor():
    codes, scale = quantize_weight(torch.tensor([[63.75, -127.5], [15.75, 0.0]]), None)
    assert scale.shape == (1, 1)
    assert scale.item() == 1.0
    assert codes.tolist() == [[64, -128], [16, 0]]


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(-30, 30))
def test_zero_is_code_zero_and_channels_of_zeros_have_a_scale(seed, share, exponent):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 16, generator=generator) * 10.0**exponent
    weight[torch.rand(8, 16, generator=generator) < share] = 0
    weight[3] = 0
    codes, scale = quantize_weight(weight, 0)
    assert (codes[weight == 0] == 0).all()
    assert (scale > 0).all()
    assert torch.isfinite(snap_weight(weight, 0)).all()
    assert (snap_weight(weight, 0)[3] == 0).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_snapped_weight_is_codes_times_scales_within_half_a_step(dtype, bits):
    weight = torch.randn(7, 9).to(dtype)
    codes, scale = quantize_weight(weight, 0, bits)
    snapped = snap_weight(weight, 0, bits)
    assert snapped.dtype == dtype
    assert torch.equal(snapped, (codes * scale).to(dtype))
    assert ((codes * scale - weight.float()).abs() <= 0.5001 * scale).all()
