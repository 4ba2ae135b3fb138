"""Rotary position embedding, against torch in float64."""

from __future__ import annotations

import pytest
import torch

from inc_torch import kernels
from inc_torch.kernels import OperandError
from tests.unit.kernels.needed import needs_processor, run

pytestmark = needs_processor


def expected(input, cosine, sine):
    first, second = input.double().chunk(2, -1)
    return input.double() * cosine.double() + torch.cat((-second, first), -1) * sine.double()


@pytest.mark.parametrize("shape", [(1, 9, 1, 64), (2, 3, 5, 64), (2, 2, 7, 6), (1, 2, 3, 80), (2, 1, 1, 34)], ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["one table", "a table of each sample"])
def test_heads_are_rotated(shape, shared):
    batch, heads, positions, size = shape
    input = torch.randn(batch, positions, heads, size + 3).transpose(1, 2)[..., :size]
    angles = torch.randn(1 if shared else batch, 1, positions, size)
    cosine, sine = angles.cos(), angles.sin()
    output = torch.full((batch, heads, positions + 2, size), torch.nan)[:, :, 1:-1]
    run(kernels.rotate(input, cosine, sine, output))
    torch.testing.assert_close(output.double(), expected(input, cosine, sine), rtol=1e-6, atol=1e-6)


def test_a_tensor_may_be_rotated_in_place():
    input, angles = torch.randn(1, 2, 5, 48), torch.randn(1, 1, 5, 48)
    wanted = expected(input, angles.cos(), angles.sin())
    run(kernels.rotate(input, angles.cos(), angles.sin(), input))
    torch.testing.assert_close(input.double(), wanted, rtol=1e-6, atol=1e-6)


def test_wrong_operands_are_refused_when_the_step_is_built():
    good, table = torch.randn(2, 3, 4, 8), torch.randn(1, 1, 4, 8)
    for build, message in (
        (lambda: kernels.rotate(good.bfloat16(), table, table, good), "input is bfloat16, expected float32"),
        (lambda: kernels.rotate(good[..., :7], table, table, good[..., :7]), "expected an even last dimension"),
        (lambda: kernels.rotate(good[0], table, table, good), "expected of four dimensions"),
        (lambda: kernels.rotate(good, table[:, :, :3], table, good), r"cosine is of shape \(1, 1, 3, 8\), expected"),
        (lambda: kernels.rotate(good, table, good[:, :2], good), r"sine is of shape .* expected \(2, 1, 4, 8\)"),
        (lambda: kernels.rotate(good, table, table, good.transpose(2, 3).contiguous().mT), "dense last dimension"),
    ):
        with pytest.raises(OperandError, match=message):
            build()
