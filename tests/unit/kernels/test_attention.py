"""Attention, against torch in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from inc_torch import kernels
from inc_torch.kernels import Grid, OperandError
from tests.unit.kernels.needed import assert_rounded, needs_processor, run

pytestmark = [needs_processor, pytest.mark.usefixtures("instructions")]

# batch, heads, key heads, queries, keys, size, size of values
SHAPES = [
    (1, 12, 12, 128, 128, 64, 64),
    (2, 4, 2, 7, 9, 20, 33),
    (2, 2, 1, 13, 70, 17, 5),
    (1, 1, 1, 6, 1, 8, 8),
    (1, 9, 3, 1, 77, 64, 64),
    (1, 2, 2, 2, 33, 24, 80),
    (1, 2, 1, 1, 40, 8, 300),
    (1, 5, 1, 1, 70, 40, 72),
    (2, 8, 2, 2, 35, 64, 130),
]


def operands(shape, dtype=torch.float32):
    torch.manual_seed(0)
    batch, heads, key_heads, queries, keys, size, value_size = shape
    query = torch.randn(batch, queries, heads, size).transpose(1, 2).to(dtype)
    key = torch.randn(batch, keys, key_heads, size).transpose(1, 2).to(dtype)
    value = torch.randn(batch, key_heads, keys, value_size).to(dtype)
    return query, key, value


def attended(query, key, value, mask=None, causal=False):
    output = torch.full((query.shape[0], query.shape[2], query.shape[1], value.shape[3]), math.nan)
    run(kernels.attention(query, key, value, output, query.shape[3] ** -0.5, mask, causal))
    return output.transpose(1, 2)


def expected(query, key, value, mask=None, causal=False):
    mask = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    return F.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=mask, is_causal=causal, enable_gqa=True
    )


def assert_near(actual, wanted, queries):
    """bfloat16 has 8 bits; one or two queries are float32."""
    near = {"rtol": 1e-5, "atol": 3e-6} if queries <= 2 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(actual.double(), wanted, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["all keys", "causal"])
def test_heads_attend(shape, dtype, causal):
    inputs = operands(shape, dtype)
    assert_near(attended(*inputs, causal=causal), expected(*inputs, causal=causal), shape[3])


@pytest.mark.parametrize("queries", [1, 13])
def test_masks_broadcast_and_may_be_numbers_or_truths(queries):
    inputs = operands((2, 4, 2, queries, 70, 32, 32))
    padding = torch.zeros(2, 1, 1, 70)
    padding[..., 40:] = torch.finfo(torch.float32).min
    kept = torch.rand(2, 4, queries, 70) > 0.5
    kept[..., 0] = True
    for mask in (padding, torch.randn(1, 4, queries, 70), torch.randn(2, 1, queries, 1), kept, kept[:1, :1]):
        assert_near(attended(*inputs, mask=mask), expected(*inputs, mask=mask), queries)


@pytest.mark.parametrize("queries", [1, 13])
def test_a_query_that_sees_nothing_gives_zero(queries):
    inputs = operands((1, 2, 2, queries, 20, 16, 16))
    assert not attended(*inputs, mask=torch.zeros(1, 1, queries, 20, dtype=torch.bool)).any()
    assert not attended(*inputs, mask=torch.full((1, 1, 1, 20), -math.inf)).any()


@pytest.mark.parametrize("queries", [1, 13])
def test_nan_in_a_query_stays_in_its_row(queries):
    query, key, value = operands((1, 2, 2, queries, 20, 16, 16))
    query[0, 1, 0, 3] = math.nan
    output = attended(query, key, value)
    assert output[0, 1, 0].isnan().all()
    assert output[0, 0].isfinite().all()
    assert output[0, 1, 1:].isfinite().all()


def test_great_scores_do_not_overflow():
    query, key, value = operands((1, 2, 2, 13, 20, 16, 16))
    output = attended(query * 1e4, key * 1e4, value)
    assert output.isfinite().all()


def test_outputs_may_be_codes_or_bfloat16():
    inputs, grid = operands((1, 2, 2, 1, 20, 16, 24)), Grid(0.0625, 100)
    codes, halves = torch.empty(1, 1, 2, 24, dtype=torch.uint8), torch.empty(1, 1, 2, 24, dtype=torch.bfloat16)
    run(
        kernels.attention(*inputs, codes, 0.25, None, False, output_grid=grid),
        kernels.attention(*inputs, halves, 0.25, None, False),
    )
    exact = expected(*inputs).transpose(1, 2)
    assert_rounded(codes, exact, grid)
    torch.testing.assert_close(halves.double(), exact, rtol=4e-3, atol=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES[:2], SHAPES[4], (1, 10, 2, 1, 1200, 64, 64)], ids=str)
def test_two_threads_and_one_give_the_same_bits(shape):
    inputs, outputs = operands(shape), []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            outputs.append(attended(*inputs))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*outputs)


def test_wrong_operands_are_refused_when_the_step_is_built():
    query, key, value = operands((1, 4, 2, 5, 7, 8, 8))
    output = torch.empty(1, 5, 4, 8)
    for change, message in (
        ({"query": query.double()}, "query is float64, expected float32 or bfloat16"),
        ({"query": query[0]}, "expected of four dimensions"),
        ({"key": key[..., :7]}, r"key is of shape \(1, 2, 7, 7\), expected \(1, 2, 7, 8\)"),
        ({"value": value[:, :, :6]}, "value is of shape"),
        ({"key": key[:, [0, 1, 1]], "value": value[:, [0, 1, 1]]}, "expected a divisor of the 4 heads"),
        ({"output": output.transpose(1, 2)}, r"output is of shape \(1, 4, 5, 8\), expected \(1, 5, 4, 8\)"),
        ({"mask": torch.zeros(1, 3, 5, 7)}, "expected one that broadcasts to"),
        ({"mask": torch.zeros(1, 1, 5, 7).int()}, "mask is int32, expected float32 or bool"),
        ({"scale": math.inf}, "scale is inf, expected a finite number"),
        ({"query": query.transpose(2, 3).contiguous().transpose(2, 3)}, "a dense last dimension"),
    ):
        given = {"query": query, "key": key, "value": value, "output": output, "scale": 1.0, "mask": None} | change
        with pytest.raises(OperandError, match=message):
            kernels.attention(**given, causal=False)
