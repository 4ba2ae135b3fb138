"""Sums, products, activations and pooling of tensors, against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inc_torch import kernels
from inc_torch.kernels import Activation, Clamp, Grid, OperandError
from tests.unit.kernels.needed import ACTIVATIONS, CHANNELS_LAST, assert_rounded, codes, grid, needs_processor, run

pytestmark = needs_processor
GRID = grid(0.0713, 30)
OTHER = grid(0.193, 50)


def image(*shape):
    return codes(*shape).to(memory_format=CHANNELS_LAST)


def values(tensor, grid):
    return (tensor.double() - grid.zero_point) * grid.scale


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_are_accurate_and_keep_what_is_not_finite(activation):
    points = torch.linspace(-9, 9, 100001)
    output = torch.empty_like(points)
    run(kernels.activation(points, output, activation))
    exact = ACTIVATIONS[activation](points.double())
    assert (output.double() - exact).abs().max() < 2e-6
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1e30, -1e30])
    output = torch.empty_like(special)
    run(kernels.activation(special, output, activation))
    assert output[0].isnan()
    exact = ACTIVATIONS[activation](special)
    finite = exact.isfinite()
    torch.testing.assert_close(output[finite], exact[finite], rtol=1e-5, atol=2e-6)


def test_a_clamp_needs_low_below_high():
    with pytest.raises(ValueError, match=r"expected low < high, got 1\.0 and 0\.0"):
        Clamp(1.0, 0.0)


def test_sums_and_copies_go_into_slices_of_channels():
    first, second = image(2, 10, 5, 5), torch.randn(2, 10, 5, 5).to(memory_format=CHANNELS_LAST)
    whole = torch.zeros(2, 30, 5, 5, dtype=torch.uint8).to(memory_format=CHANNELS_LAST)
    run(
        kernels.add(first, second, whole[:, 10:20], GRID, None, OTHER, Activation.RELU),
        kernels.requantize(first, GRID, whole[:, :10], GRID),
        kernels.requantize(first, GRID, whole[:, 20:], OTHER),
    )
    assert torch.equal(whole[:, :10], first)
    assert_rounded(whole[:, 10:20], torch.relu(values(first, GRID) + second), OTHER)
    assert_rounded(whole[:, 20:], values(first, GRID), OTHER)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 31, 32, 33, 100])
def test_channels_of_two_images_take_turns_and_nothing_else_is_written(channels, dtype):
    first, second = image(2, channels, 5, 3).to(dtype), image(2, channels + 4, 5, 3).to(dtype)[:, 2:-2]
    whole = torch.full((2, 2 * channels + 20, 5, 3), 77, dtype=dtype).to(memory_format=CHANNELS_LAST)
    run(kernels.interleave(first, second, whole[:, 10:-10]))
    assert torch.equal(whole[:, 10:-10], torch.stack([first, second], 2).flatten(1, 2))
    assert (whole[:, :10] == 77).all()
    assert (whole[:, -10:] == 77).all()


def test_what_takes_turns_is_alike():
    first, output = image(2, 8, 5, 3), image(2, 16, 5, 3)
    for wrong, message in (
        ((first, image(2, 7, 5, 3), output), "second is of shape"),
        ((first, first.float(), output), "second is float32, expected uint8"),
        ((first, first, first), "output is of shape"),
        ((first, first.contiguous(), output), "channels-last"),
    ):
        with pytest.raises(OperandError, match=message):
            kernels.interleave(*wrong)


@pytest.mark.parametrize("shape", [(3, 7, 40), (5,), (4096, 3)], ids=str)
def test_sums_of_floats_are_those_of_torch(shape):
    first, second, output = torch.randn(shape), torch.randn(shape), torch.empty(shape)
    run(kernels.add(first, second, output))
    assert torch.equal(output, first + second)


def test_gates_multiply():
    gate, up, output = torch.randn(5, 70), torch.randn(5, 70), codes(5, 70)
    run(kernels.gated(gate, up, output, Activation.SILU, output_grid=OTHER))
    assert_rounded(output, F.silu(gate.double()) * up.double(), OTHER)


@pytest.mark.parametrize("shape", [(2, 10, 5, 5), (6, 10)], ids=str)
def test_each_channel_has_its_own_line(shape):
    source = image(*shape) if len(shape) == 4 else codes(*shape)
    scale, shift = torch.randn(10), torch.randn(10)
    output = torch.empty(source.shape).to(memory_format=CHANNELS_LAST) if len(shape) == 4 else torch.empty(shape)
    run(kernels.affine(source, scale, shift, output, Activation.RELU, GRID))
    view = (1, -1, 1, 1) if len(shape) == 4 else (1, -1)
    exact = torch.relu(values(source, GRID) * scale.double().view(view) + shift.double().view(view))
    torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 10, 5, 5), (1, 70, 1, 3), (3, 16, 4, 2)], ids=str)
def test_channels_of_each_image_have_a_factor(shape):
    whole = image(shape[0], shape[1] + 6, *shape[2:])
    source, factor = whole[:, 6:], torch.rand(*shape[:2], 1, 1)
    floats = torch.empty(shape).to(memory_format=CHANNELS_LAST)
    target = torch.zeros(shape[0], shape[1] + 3, *shape[2:], dtype=torch.uint8).to(memory_format=CHANNELS_LAST)
    run(
        kernels.scale_channels(source, GRID, factor, floats),
        kernels.scale_channels(source, GRID, factor, target[:, 2:-1], OTHER),
    )
    exact = values(source, GRID) * factor
    torch.testing.assert_close(floats.double(), exact, rtol=1e-6, atol=1e-6)
    assert_rounded(target[:, 2:-1], exact, OTHER)
    assert not target[:, :2].any()
    assert not target[:, -1].any()


@pytest.mark.parametrize("shape", [(1, 64, 20, 20), (2, 5, 7, 9), (1, 70, 9, 9)], ids=str)
@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (3, 1, 1), ((3, 1), (1, 2), (1, 0))], ids=str)
def test_windows_are_pooled(shape, window):
    source = image(*shape)
    most = F.max_pool2d(source.float(), *window)
    output = torch.empty(most.shape, dtype=torch.uint8).to(memory_format=CHANNELS_LAST)
    run(kernels.max_pool2d(source, output, *window))
    assert torch.equal(output.float(), most)
    for counted in (True, False):
        mean = F.avg_pool2d(values(source, GRID), *window, count_include_pad=counted)
        floats = torch.empty(mean.shape).to(memory_format=CHANNELS_LAST)
        rounded = torch.empty(mean.shape, dtype=torch.uint8).to(memory_format=CHANNELS_LAST)
        run(
            kernels.avg_pool2d(source, GRID, floats, None, *window, count_include_pad=counted),
            kernels.avg_pool2d(source, GRID, rounded, OTHER, *window, count_include_pad=counted),
        )
        torch.testing.assert_close(floats.double(), mean, rtol=1e-5, atol=1e-5)
        assert_rounded(rounded, mean, OTHER)


def test_taps_of_a_window_may_be_apart():
    source = image(2, 20, 11, 12)
    most = F.max_pool2d(source.float(), 3, 2, 1, 2)
    output = torch.empty(most.shape, dtype=torch.uint8).to(memory_format=CHANNELS_LAST)
    run(kernels.max_pool2d(source, output, 3, 2, 1, 2))
    assert torch.equal(output.float(), most)


@pytest.mark.parametrize("size", range(4, 12))
@pytest.mark.parametrize("window", [(3, 2, 0, 1), (2, 2, 1, 1), (3, 2, 1, 2), (2, 3, 0, 1), (1, 3, 0, 1)], ids=str)
def test_a_window_that_reaches_out_may_count(size, window):
    source = image(1, 5, size, size + 1)
    try:
        most = F.max_pool2d(source.float(), *window, ceil_mode=True)
    except RuntimeError:  # the kernel does not fit
        with pytest.raises(OperandError, match="an image that the kernel"):
            kernels.max_pool2d(source, source, *window, ceil_mode=True)
        return
    output = torch.empty(most.shape, dtype=torch.uint8).to(memory_format=CHANNELS_LAST)
    run(kernels.max_pool2d(source, output, *window, ceil_mode=True))
    assert torch.equal(output.float(), most)


@pytest.mark.parametrize("kept", [False, True], ids=["[n, c]", "[n, c, 1, 1]"])
def test_whole_images_are_averaged(kept):
    source = image(3, 37, 7, 5)
    mean = values(source, GRID).mean((2, 3), keepdim=kept)
    floats, rounded = torch.empty(mean.shape), torch.empty(mean.shape, dtype=torch.uint8)
    run(kernels.global_avg_pool(source, GRID, floats, None), kernels.global_avg_pool(source, GRID, rounded, OTHER))
    torch.testing.assert_close(floats.double(), mean, rtol=1e-5, atol=1e-6)
    assert_rounded(rounded, mean, OTHER)


def test_wrong_operands_are_refused_when_the_step_is_built():
    first, floats = image(2, 10, 5, 5), torch.randn(4, 6)
    output = torch.empty(2, 10, 2, 2, dtype=torch.uint8).to(memory_format=CHANNELS_LAST)
    for build, message in (
        (lambda: kernels.add(first, first, first, GRID, GRID, None), "the grid of output is None, expected a Grid"),
        (lambda: kernels.add(floats, floats, floats, GRID), "the grid of first is Grid.*, expected None"),
        (lambda: kernels.add(floats, floats[:3], floats), r"second is of shape \(3, 6\), expected \(4, 6\)"),
        (lambda: kernels.add(first, codes(2, 10, 5, 5), first, GRID, GRID, GRID), "in all operands"),
        (lambda: kernels.requantize(floats, GRID, floats, GRID), "input is float32, expected uint8"),
        (lambda: kernels.affine(floats, torch.ones(5), torch.ones(6), floats), r"scale is of shape \(5,\)"),
        (lambda: kernels.max_pool2d(first, output, 2, 2, 2), "padding is .*, expected at most half of the kernel"),
        (
            lambda: kernels.max_pool2d(first, output, 3, 1),
            r"output is of shape .*, expected \[2, 10, 3, 3\]|\(2, 10, 3, 3\)",
        ),
        (
            lambda: kernels.scale_channels(first, GRID, torch.ones(2, 10), first, GRID),
            r"factor is of shape \(2, 10\), expected \(2, 10, 1, 1\)",
        ),
        (lambda: kernels.scale_channels(first, GRID, torch.ones(2, 10, 1, 1), first), "output_grid is None"),
        (lambda: kernels.max_pool2d(codes(2, 10, 5, 5), output, 2, 2), "channels-last memory"),
        (lambda: kernels.global_avg_pool(floats, Grid(1.0, 0), floats, None), "expected \\[n, c, h, w\\]"),
    ):
        with pytest.raises(OperandError, match=message):
            build()
