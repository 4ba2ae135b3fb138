"""Convolutions on codes, against exact sums of torch's float64 convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inc_torch import kernels
from inc_torch.kernels import Activation, Grid, OperandError
from tests.unit.kernels.needed import CHANNELS_LAST, assert_rounded, codes, grid, needs_processor, run, weights

pytestmark = [needs_processor, pytest.mark.usefixtures("instructions")]

# batch, channels, height, width, output channels, kernel, stride, padding, dilation, groups
SHAPES = [
    (1, 3, 20, 17, 16, (7, 7), 2, 3, 1, 1),
    (2, 3, 9, 9, 70, (3, 3), 1, 1, 1, 1),
    (1, 3, 9, 9, 7, (3, 3), (1, 2), 1, (2, 2), 1),
    (1, 1, 28, 28, 6, (5, 5), 1, 0, 1, 1),
    (3, 1, 12, 12, 5, (1, 3), 1, (0, 1), 1, 1),
    (1, 7, 5, 1, 9, (3, 1), 1, (1, 0), 1, 1),
    (2, 8, 9, 7, 33, (3, 3), 1, 1, 1, 1),
    (2, 16, 9, 7, 33, (3, 3), 2, 1, 1, 1),
    (1, 64, 14, 14, 64, (3, 3), 1, 1, 1, 1),
    (2, 5, 6, 6, 20, (1, 1), 1, 0, 1, 1),
    (2, 20, 7, 7, 24, (1, 1), 2, 0, 1, 1),
    (1, 4, 1, 1, 8, (1, 1), 1, 0, 1, 1),
    (1, 58, 7, 7, 58, (1, 1), 1, 0, 1, 1),
    (2, 12, 9, 8, 18, (3, 3), 1, 1, 1, 3),
    (1, 8, 9, 8, 16, (3, 3), 1, 1, 1, 8),
    (2, 24, 5, 5, 24, (3, 3), 1, 1, 1, 24),
    (2, 70, 9, 8, 70, (5, 5), 2, 2, 1, 70),
    (1, 130, 9, 8, 130, (3, 3), 1, 1, 2, 130),
    (1, 12, 9, 8, 12, (2, 2), 1, 0, 1, 12),
    (1, 72, 3, 3, 72, (7, 7), 1, 3, 1, 72),
    (2, 32, 9, 8, 32, (3, 3), 1, 1, 1, 32),
    (1, 16, 5, 11, 16, (5, 5), 1, 2, 1, 16),
    (1, 2, 9, 9, 2, (3, 3), 1, 0, 1, 2),
]


@pytest.mark.parametrize("sliced", [False, True], ids=["dense", "slice of channels"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_the_exact_integers(shape, sliced):
    batch, channels, height, width, outputs, kernel, stride, padding, dilation, groups = shape
    torch.manual_seed(0)
    source = codes(batch, channels * (1 + sliced), height, width).to(memory_format=CHANNELS_LAST)
    source = source[:, channels // 2 : channels // 2 + channels] if sliced else source
    weight = weights(outputs, channels // groups, *kernel)
    exact = F.conv2d(source.double() - 9, weight.double(), None, stride, padding, dilation, groups)
    output = torch.empty(exact.shape).to(memory_format=CHANNELS_LAST)
    packed, scale = kernels.pack_conv(weight, groups), torch.ones(outputs)
    run(kernels.conv2d(source, packed, Grid(1.0, 9), scale, None, stride, padding, dilation, groups, output))
    assert torch.equal(output.double(), exact)


# (above, below), (left, right)
UNEVEN = [
    ((1, 0), (0, 0)),
    ((0, 1), (0, 0)),
    ((0, 0), (1, 0)),
    ((0, 0), (0, 1)),
    ((0, 1), (0, 1)),
    ((2, 1), (1, 2)),
    ((0, 3), (3, 0)),
    (1, (0, 2)),
]
# channels, output channels, kernel, dilation, groups
FORMS = {
    "lines": (3, 20, (3, 3), 1, 1),
    "lines of one channel": (1, 6, (4, 5), 1, 1),
    "long lines": (15, 6, (3, 6), 1, 1),
    "lines, taps apart": (3, 7, (3, 2), (2, 1), 1),
    "few channels, taps apart": (3, 7, (3, 3), 2, 1),
    "taps": (20, 33, (3, 3), 1, 1),
    "taps apart": (16, 9, (3, 2), (1, 2), 1),
    "points": (20, 24, (1, 1), 1, 1),
    "groups": (12, 18, (3, 3), 1, 3),
    "depthwise": (70, 70, (3, 3), 1, 70),
    "depthwise, few channels": (16, 16, (5, 5), 1, 16),
    "depthwise, taps apart": (32, 32, (3, 3), 2, 32),
}


@pytest.mark.parametrize("sliced", [False, True], ids=["dense", "slice of channels"])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)], ids=str)
@pytest.mark.parametrize("padding", UNEVEN, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_each_side_may_have_a_padding_of_its_own(form, padding, stride, sliced):
    channels, outputs, kernel, dilation, groups = FORMS[form]
    torch.manual_seed(0)
    source = codes(2, channels * (1 + sliced), 10, 13).to(memory_format=CHANNELS_LAST)[:, channels * sliced :]
    weight = weights(outputs, channels // groups, *kernel)
    (above, below), (left, right) = ((side, side) if isinstance(side, int) else side for side in padding)
    padded = F.pad(source.double() - 9, (left, right, above, below))
    exact = F.conv2d(padded, weight.double(), None, stride, 0, dilation, groups)
    packed, scale = kernels.pack_conv(weight, groups), torch.full((outputs,), 0.002)
    geometry = (stride, padding, dilation, groups)
    output = torch.empty(exact.shape).to(memory_format=CHANNELS_LAST)
    run(kernels.conv2d(source, packed, Grid(1.0, 9), torch.ones(outputs), None, *geometry, output))
    assert torch.equal(output.double(), exact)
    rounded, output_grid = torch.empty_like(output, dtype=torch.uint8), grid(0.5, 100)
    run(kernels.conv2d(source, packed, Grid(1.0, 9), scale, None, *geometry, rounded, output_grid=output_grid))
    assert_rounded(rounded, exact * scale[0].double(), output_grid)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "kernel"), [(3, 7), (8, 3), (20, 1)])
def test_big_images_are_computed_in_blocks(channels, kernel, stride):
    torch.manual_seed(0)
    source, weight = codes(2, channels, 69, 107).to(memory_format=CHANNELS_LAST), weights(90, channels, kernel, kernel)
    exact = F.conv2d(source.double() - 9, weight.double(), None, stride, kernel // 2)
    residual = torch.randint(-99, 99, exact.shape).float().to(memory_format=CHANNELS_LAST)
    output, packed = torch.empty_like(residual), kernels.pack_conv(weight, 1)
    run(
        kernels.conv2d(
            source, packed, Grid(1.0, 9), torch.ones(90), None, stride, kernel // 2, 1, 1, output, residual=residual
        )
    )
    assert torch.equal(output.double(), exact + residual)


@pytest.mark.parametrize("groups", [1, 40], ids=["dense", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("activation", [Activation.RELU, Activation.GELU], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_outputs_follow_the_formula(groups, dtype, activation, residual):
    torch.manual_seed(0)
    source, weight = codes(2, 40, 9, 8).to(memory_format=CHANNELS_LAST), weights(40, 40 // groups, 3, 3)
    scale, bias, output_grid = torch.rand(40) * 0.001 + 0.0001, torch.randn(40), grid(0.031, 20)
    exact = F.conv2d(
        (source.double() - 9) * 0.5, weight.double() * scale.double().view(-1, 1, 1, 1), bias.double(), 1, 1, 1, groups
    )
    other = codes(*exact.shape).to(memory_format=CHANNELS_LAST)
    added = other if dtype == torch.uint8 else other.float()
    if residual:
        exact += (other.double() - 7) * 0.25 if dtype == torch.uint8 else other.double()
    exact = torch.relu(exact) if activation is Activation.RELU else F.gelu(exact)
    output = torch.zeros(exact.shape, dtype=dtype).to(memory_format=CHANNELS_LAST)
    run(
        kernels.conv2d(
            source, kernels.pack_conv(weight, groups), Grid(0.5, 9), scale, bias, 1, 1, 1, groups, output,
            activation=activation,
            output_grid=output_grid if dtype == torch.uint8 else None,
            residual=added if residual else None,
            residual_grid=Grid(0.25, 7) if residual and dtype == torch.uint8 else None,
        )
    )  # fmt: skip
    if dtype == torch.uint8:
        assert_rounded(output, exact, output_grid)
    else:
        torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (3, 40)])
@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (32, 1), (32, 2), (70, 1), (70, 3)])
def test_long_lines_are_computed_in_runs(channels, stride, kernel, dilation):
    torch.manual_seed(0)
    source, weight = codes(2, channels, 5, 303).to(memory_format=CHANNELS_LAST), weights(channels, 1, kernel, kernel)
    around = dilation * (kernel // 2)
    exact = F.conv2d(source.double() - 9, weight.double(), None, stride, around, dilation, channels) * 0.002
    output, output_grid = torch.empty(exact.shape, dtype=torch.uint8).to(memory_format=CHANNELS_LAST), grid(0.5, 100)
    packed, scale = kernels.pack_conv(weight, channels), torch.full((channels,), 0.002)
    geometry = (stride, around, dilation, channels)
    run(kernels.conv2d(source, packed, Grid(1.0, 9), scale, None, *geometry, output, output_grid=output_grid))
    assert_rounded(output, exact, output_grid)


@pytest.mark.parametrize("width", [12, 13])
@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (32, 1), (32, 2), (64, 1), (144, 1)])
def test_depthwise_codes_are_right_where_pixels_are_joined(channels, stride, width):
    source, weight = codes(2, channels, 13, width).to(memory_format=CHANNELS_LAST), weights(channels, 1, 3, 3)
    scale, bias, output_grid = torch.rand(channels) * 0.01 + 0.001, torch.randn(channels), grid(0.3, 20)
    values = (source.double() - 9) * 0.05
    exact = F.conv2d(values, weight.double() * scale.double().view(-1, 1, 1, 1), bias.double(), stride, 1, 1, channels)
    output = torch.empty(exact.shape, dtype=torch.uint8).to(memory_format=CHANNELS_LAST)
    packed = kernels.pack_conv(weight, channels)
    run(
        kernels.conv2d(
            source, packed, grid(0.05, 9), scale, bias, stride, 1, 1, channels, output, output_grid=output_grid
        )
    )
    assert_rounded(output, exact, output_grid)


@pytest.mark.parametrize("groups", [1, 32], ids=["dense", "depthwise"])
def test_two_threads_and_one_give_the_same_bits(groups):
    source, weight = codes(2, 32, 30, 30).to(memory_format=CHANNELS_LAST), weights(32, 32 // groups, 3, 3)
    outputs = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            output = torch.empty(2, 32, 30, 30).to(memory_format=CHANNELS_LAST)
            packed, scale = kernels.pack_conv(weight, groups), torch.full((32,), 0.01)
            run(kernels.conv2d(source, packed, Grid(0.3, 7), scale, None, 1, 1, 1, groups, output))
            outputs.append(output)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*outputs)


def test_wrong_operands_are_refused_when_the_step_is_built():
    packed, scale = kernels.pack_conv(weights(6, 4, 3, 3), 1), torch.ones(6)
    source = codes(1, 4, 8, 8).to(memory_format=CHANNELS_LAST)
    output = torch.empty(1, 6, 8, 8).to(memory_format=CHANNELS_LAST)

    def build(source=source, padding=1, groups=1, output=output, stride=1):
        return kernels.conv2d(source, packed, Grid(1.0, 0), scale, None, stride, padding, 1, groups, output)

    for change, message in (
        ({"source": codes(1, 4, 8, 8)}, "channels-last memory"),
        ({"source": codes(1, 5, 8, 8).to(memory_format=CHANNELS_LAST)}, "expected 4 channels"),
        ({"padding": 0}, r"output is of shape \(1, 6, 8, 8\), expected \(1, 6, 6, 6\)"),
        ({"padding": -1}, "padding is -1, expected one integer of at least 0"),
        ({"padding": (1, (1, -1))}, r"padding is \(1, -1\), expected one integer of at least 0"),
        ({"padding": (1, (0, 1))}, r"output is of shape \(1, 6, 8, 8\), expected \(1, 6, 8, 7\)"),
        ({"stride": 0}, "stride is 0"),
        ({"groups": 2}, "groups is 2, expected 1, as the weight was packed"),
        ({"output": torch.empty(1, 6, 8, 8)}, "output is of strides"),
        ({"source": source[:, :, :1, :1], "padding": 0}, "an image that the kernel .* fits into"),
    ):
        with pytest.raises(OperandError, match=message):
            build(**change)
    with pytest.raises(OperandError, match="groups is 5, expected a divisor of 6 output channels"):
        kernels.pack_conv(weights(6, 4, 3, 3), 5)
