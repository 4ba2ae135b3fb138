"""Each operation: by operators of torch and by compiled kernels, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import kernels
from inc_torch.inference._affine import Affine
from inc_torch.inference._attention import Attend
from inc_torch.inference._channels import ScaleChannels
from inc_torch.inference._codes import Decode, Encode, EncodeInRange, FindRange, Requantize
from inc_torch.inference._concatenation import Concatenate
from inc_torch.inference._convolution import ConvOnCodes
from inc_torch.inference._gating import Gate
from inc_torch.inference._interleaving import Interleave
from inc_torch.inference._linear import LinearOnCodes
from inc_torch.inference._normalization import Normalize
from inc_torch.inference._operations import ACTIVATIONS, as_rows
from inc_torch.inference._pooling import AverageOfCodes, AveragePoolOfCodes, MaxPoolOfCodes
from inc_torch.inference._rotation import Rotate
from inc_torch.inference._weights import Int8Weights
from tests.unit.inference.made import WITH_KERNELS, codes, exact, fitted, grid, images

BF16 = 2.0**-8


def outputs(operation, inputs, *, compiled):
    return operation._run_kernel(inputs) if compiled else operation.compute(*inputs)


def assert_codes(found, expected, meaning):
    """Within one code, and almost everywhere the same."""
    wanted = (expected / meaning.scale + meaning.zero_point).round().clamp(0, 255)
    difference = (found.double() - wanted).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() <= 0.05


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(19, 21))
    return Int8Weights([fitted(module, torch.randn(64, 19))[0]])


@pytest.fixture(scope="module")
def convolution():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1))
    return Int8Weights([fitted(module, torch.randn(4, 3, 9, 9))[0]])


def float_weights(weights):
    scale = weights.scale.double().view(-1, *[1] * (weights.codes.dim() - 1))
    return weights.codes.double() * scale, None if weights.bias is None else weights.bias.double()


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_linear_layer_writes_floats_and_codes(linear, activation, compiled):
    source = codes(2, 5, 19)
    weight, bias = float_weights(linear)
    sums = ACTIVATIONS[activation](exact(source, linear.grid) @ weight.T + bias)
    (floats,) = outputs(LinearOnCodes(linear, activation), (source,), compiled=compiled)
    torch.testing.assert_close(floats.double(), sums, rtol=1e-3, atol=1e-3)
    meaning = grid(0.02, 128)
    (found,) = outputs(LinearOnCodes(linear, activation, output_grid=meaning), (source,), compiled=compiled)
    assert_codes(found, sums, meaning)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize("shape", [(1, 19), (7, 19), (2, 1, 3, 19)])
def test_a_linear_layer_adds_residuals_of_floats_and_codes_in_bfloat16_too(linear, shape, compiled):
    source, meaning = codes(*shape), grid(0.03, 90)
    weight, bias = float_weights(linear)
    sums = exact(source, linear.grid) @ weight.T + bias
    residual = torch.randn(*shape[:-1], 21)
    (found,) = outputs(LinearOnCodes(linear, "relu"), (source, residual), compiled=compiled)
    torch.testing.assert_close(found.double(), (sums + residual).relu(), rtol=1e-4, atol=1e-4)
    kept = codes(*shape[:-1], 21)
    operation = LinearOnCodes(linear, residual_grid=meaning, output_grid=meaning)
    (found,) = outputs(operation, (source, kept), compiled=compiled)
    assert_codes(found, sums + exact(kept, meaning), meaning)
    (found,) = outputs(LinearOnCodes(linear, output_dtype=torch.bfloat16), (source,), compiled=compiled)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), sums, rtol=BF16, atol=1e-3)


def test_a_linear_layer_reads_rows_at_a_distance_and_in_another_order(linear):
    wide, turned = codes(4, 40)[:, 3:22], codes(3, 2, 19).transpose(0, 1)
    for source in (wide, turned):
        (expected,) = LinearOnCodes(linear).compute(source.contiguous())
        torch.testing.assert_close(LinearOnCodes(linear)(source), expected, rtol=1e-4, atol=1e-4)


def test_rows_are_never_a_copy():
    values = torch.randn(4, 6, 8)[:, :, 1:5]
    assert as_rows(values).data_ptr() == values.data_ptr()
    with pytest.raises(kernels.OperandError, match="do not lie at one distance"):
        as_rows(torch.randn(2, 3, 4).transpose(0, 1))


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize("shape", [(1, 3, 9, 9), (3, 3, 7, 10)])
def test_a_convolution_adds_codes_and_clamps(convolution, shape, compiled):
    source, meaning = images(*shape), grid(0.05, 20)
    weight, bias = float_weights(convolution)
    sums = F.conv2d(exact(source, convolution.grid), weight, bias, 2, 1)
    geometry = {"stride": (2, 2), "padding": ((1, 1), (1, 1))}
    (found,) = outputs(ConvOnCodes(convolution, "relu6", **geometry), (source,), compiled=compiled)
    torch.testing.assert_close(found.double(), F.relu6(sums), rtol=1e-4, atol=1e-4)
    kept = images(*sums.shape)
    operation = ConvOnCodes(convolution, "relu", residual_grid=meaning, output_grid=meaning, **geometry)
    (found,) = outputs(operation, (source, kept), compiled=compiled)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_codes(found, (sums + exact(kept, meaning)).relu(), meaning)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize("around", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 0, 1), (3, 1, 0, 2)])
def test_a_convolution_puts_other_zeros_on_each_side(convolution, around, compiled):
    assert convolution.grid.zero_point
    source, meaning = images(2, 3, 8, 11), grid(0.05, 20)
    weight, bias = float_weights(convolution)
    sums = F.conv2d(F.pad(exact(source, convolution.grid), around), weight, bias, 2)
    left, right, above, below = around
    geometry = {"stride": (2, 2), "padding": ((above, below), (left, right))}
    (found,) = outputs(ConvOnCodes(convolution, **geometry), (source,), compiled=compiled)
    torch.testing.assert_close(found.double(), sums, rtol=1e-4, atol=1e-4)
    (found,) = outputs(ConvOnCodes(convolution, output_grid=meaning, **geometry), (source,), compiled=compiled)
    assert_codes(found, sums, meaning)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize("root_mean_square", [False, True])
@pytest.mark.parametrize("columns", [5, 64])
def test_a_norm_writes_floats_beside_codes(columns, root_mean_square, compiled):
    values, weight, meaning = torch.randn(3, 4, columns + 3)[..., 3:], torch.randn(columns), grid(0.03, 120)
    affine = (weight,) if root_mean_square else (weight, torch.randn(columns))
    rooted = F.rms_norm if root_mean_square else F.layer_norm
    expected = rooted(values.double(), (columns,), *(part.double() for part in affine), eps=1e-5)
    both = outputs(Normalize(1e-5, root_mean_square, grid=meaning), (values, *affine), compiled=compiled)
    torch.testing.assert_close(both[0].double(), expected, rtol=1e-5, atol=1e-5)
    assert_codes(both[1], expected, meaning)
    alone = outputs(
        Normalize(1e-5, root_mean_square, as_float=False, grid=meaning), (values, *affine), compiled=compiled
    )
    assert torch.equal(alone[0], both[1])


def test_a_norm_is_not_planned_with_parameters_that_do_not_lie_dense():
    with pytest.raises(kernels.OperandError, match="expected it dense"):
        Normalize(1e-5).step((torch.randn(2, 4), torch.randn(4, 2)[:, 0]), (torch.empty(2, 4),))


def attention(query, key, value, scale, hidden):
    groups = query.shape[1] // key.shape[1]
    key, value = (part.double().repeat_interleave(groups, 1) for part in (key, value))
    scores = (query.double() @ key.transpose(-1, -2) * scale).masked_fill(hidden, -math.inf)
    return (scores.softmax(-1).nan_to_num() @ value).transpose(1, 2)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize("lengths", [(1, 9), (6, 6), (5, 11)])
def test_attention_reads_grouped_heads_where_they_lie(lengths, compiled):
    queries, keys = lengths
    query = torch.randn(2, queries, 4, 16).transpose(1, 2)
    key, value = (torch.randn(2, keys, 2, 16).transpose(1, 2) for _ in range(2))
    visible = torch.rand(2, 1, queries, keys) > 0.3
    visible[0, 0, 0] = False
    mask = torch.zeros(visible.shape).masked_fill(~visible, -math.inf)
    expected = attention(query, key, value, 0.3, ~visible)
    (found,) = outputs(Attend(0.3, causal=False), (query, key, value, mask), compiled=compiled)
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.02)
    meaning = grid(0.02, 128)
    (found,) = outputs(Attend(0.3, causal=False, output_grid=meaning), (query, key, value, mask), compiled=compiled)
    assert (found.double() - (expected / meaning.scale + 128).round().clamp(0, 255)).abs().max() <= 2
    ordered = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    (found,) = outputs(Attend(None, causal=True), (query, key, value), compiled=compiled)
    torch.testing.assert_close(found.double(), attention(query, key, value, 0.25, ordered), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
def test_values_may_be_wider_than_queries(compiled):
    query, key, value = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 16)
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    (found,) = outputs(Attend(None, causal=False), (query, key, value), compiled=compiled)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "sigmoid"])
def test_a_gate_multiplies_parts_of_rows(activation, compiled):
    gate, values = torch.randn(2, 3, 24).split([12, 12], -1)
    expected, meaning = ACTIVATIONS[activation](gate.double()) * values.double(), grid(0.02, 128)
    (found,) = outputs(Gate(activation), (gate, values), compiled=compiled)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
    (found,) = outputs(Gate(activation, meaning), (gate, values), compiled=compiled)
    assert_codes(found, expected, meaning)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
def test_images_become_codes_channels_last_and_floats_again(compiled):
    values, meaning = torch.randn(2, 3, 5, 4) * 5, grid()
    (found,) = outputs(Encode(meaning, channels_last=True), (values,), compiled=compiled)
    assert_codes(found, values.double(), meaning)
    (back,) = outputs(Decode(meaning), (images(2, 3, 5, 4),), compiled=compiled)
    assert back.is_contiguous(memory_format=torch.channels_last)
    source = codes(1, 7)
    (back,) = outputs(Decode(meaning), (source,), compiled=compiled)
    torch.testing.assert_close(back.double(), exact(source, meaning))


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_grid_is_found_in_the_values(symmetric, compiled):
    values = torch.randn(5, 7) + 1
    (found,) = outputs(FindRange(symmetric), (values,), compiled=compiled)
    (rounded,) = outputs(EncodeInRange(), (values, found), compiled=compiled)
    assert ((rounded.double() - found[1].double()) * found[0].double() - values).abs().max() <= found[0] * 0.51
    values[2, 2] = math.nan
    assert outputs(FindRange(symmetric), (values,), compiled=compiled)[0][0].isnan()


@pytest.mark.parametrize("compiled", WITH_KERNELS)
def test_pools_of_codes(compiled):
    source, meaning, other = images(2, 5, 7, 6), grid(), grid(0.04, 90)
    (found,) = outputs(MaxPoolOfCodes((3, 2), (2, 2), (1, 0), (1, 1), ceil_mode=False), (source,), compiled=compiled)
    assert torch.equal(found.float(), F.max_pool2d(source.float(), (3, 2), (2, 2), (1, 0)))
    rounded_up = MaxPoolOfCodes((3, 3), (2, 2), (0, 0), (1, 1), ceil_mode=True)
    assert torch.equal(rounded_up(source).float(), F.max_pool2d(source.float(), 3, 2, ceil_mode=True))
    mean = exact(source, meaning).mean((2, 3))
    (found,) = outputs(AverageOfCodes(meaning, keeps_dimensions=False), (source,), compiled=compiled)
    torch.testing.assert_close(found.double(), mean, rtol=1e-5, atol=1e-5)
    (found,) = outputs(AverageOfCodes(meaning, keeps_dimensions=True, output_grid=other), (source,), compiled=compiled)
    assert found.shape == (2, 5, 1, 1)
    assert_codes(found[..., 0, 0], mean, other)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
def test_channels_are_scaled_and_heads_rotated(compiled):
    source, factor, meaning = images(2, 5, 3, 4), torch.rand(2, 5, 1, 1), grid()
    (found,) = outputs(ScaleChannels(meaning), (source, factor), compiled=compiled)
    torch.testing.assert_close(found.double(), exact(source, meaning) * factor, rtol=1e-5, atol=1e-5)
    values, angles = torch.randn(2, 3, 5, 8), torch.randn(1, 1, 5, 4)
    cosine, sine = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    (found,) = outputs(Rotate(), (values, cosine, sine), compiled=compiled)
    first, second = values.chunk(2, -1)
    turned = torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)
    torch.testing.assert_close(found, turned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize(("kernel", "stride", "padding"), [((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 2), (1, 1))])
@pytest.mark.parametrize("border", [False, True])
def test_windows_of_codes_are_averaged(kernel, stride, padding, border, compiled):
    source, meaning, other = images(2, 5, 7, 6), grid(), grid(0.04, 90)
    mean = F.avg_pool2d(exact(source, meaning), kernel, stride, padding, count_include_pad=border)
    (found,) = outputs(AveragePoolOfCodes(meaning, kernel, stride, padding, border), (source,), compiled=compiled)
    torch.testing.assert_close(found.double(), mean, rtol=1e-5, atol=1e-5)
    operation = AveragePoolOfCodes(meaning, kernel, stride, padding, border, output_grid=other)
    (found,) = outputs(operation, (source,), compiled=compiled)
    assert_codes(found, mean, other)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 1), (1, 5, 9)], ids=str)
def test_each_channel_of_all_parts_has_its_own_line(shape, activation, compiled):
    samples, *size = shape
    parts = (images(samples, 5, *size), images(samples, 40, *size)[:, 3:22], images(samples, 16, *size))
    meanings, other = (grid(), grid(0.04, 7), grid(0.01, 255)), grid(0.06, 120)
    factor, shift = torch.randn(40), torch.randn(40)
    values = torch.cat([exact(part, meaning) for part, meaning in zip(parts, meanings, strict=True)], 1)
    line = ACTIVATIONS[activation](values * factor.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1))
    (found,) = outputs(Affine(meanings, activation), (*parts, factor, shift), compiled=compiled)
    torch.testing.assert_close(found.double(), line, rtol=1e-5, atol=1e-5)
    (found,) = outputs(Affine(meanings, activation, other), (*parts, factor, shift), compiled=compiled)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_codes(found, line, other)


@pytest.mark.parametrize("compiled", WITH_KERNELS)
def test_codes_lie_side_by_side_and_in_turn(compiled):
    parts = images(2, 5, 3, 4), images(2, 40, 3, 4)[:, 3:22], images(2, 1, 3, 4)
    (found,) = outputs(Concatenate(3), parts, compiled=compiled)
    assert torch.equal(found, torch.cat(parts, 1))
    assert found.is_contiguous(memory_format=torch.channels_last)
    for channels in (1, 5, 32, 33, 70):
        pair = images(2, channels, 3, 4), images(2, channels + 9, 3, 4)[:, 4 : channels + 4]
        for values in (pair, [part.float() for part in pair]):
            (found,) = outputs(Interleave(2), values, compiled=compiled)
            assert found.dtype == values[0].dtype
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found[:, ::2], values[0])
            assert torch.equal(found[:, 1::2], values[1])


def test_more_than_two_parts_are_interleaved_by_torch():
    parts = [images(2, 5, 3, 4) for _ in range(3)]
    assert torch.equal(Interleave(3)(*parts), torch.stack(parts, 2).flatten(1, 2))


@pytest.mark.parametrize("compiled", WITH_KERNELS)
def test_codes_change_their_grid(compiled):
    meaning, other = grid(), grid(0.043, 90)
    for source in (images(2, 5, 3, 4), images(2, 12, 3, 4)[:, 3:8], codes(3, 7)):
        (found,) = outputs(Requantize(meaning, other), (source,), compiled=compiled)
        assert_codes(found, exact(source, meaning), other)
