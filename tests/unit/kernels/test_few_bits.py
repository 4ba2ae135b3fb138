"""Weights of few bits: unpacked exactly, multiplied as torch does in float64, and no memory is touched besides."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch import kernels
from inc_torch.kernels import FewBitsWeight, OperandError
from inc_torch.quantizers import WeightOnlyScheme, decoded, round_to_nearest
from inc_torch.quantizers._weight_only import pack
from tests.unit.kernels.needed import needs_processor

pytestmark = needs_processor


def packed(weight, scheme, bias=None):
    """The compiled weight, and what it stands for by torch's own operators."""
    rounded = round_to_nearest(weight, scheme)
    inputs = weight.shape[1]
    zeros = None if rounded.zero_points is None else pack(rounded.zero_points, scheme.bits)
    group = inputs if scheme.group_size == -1 else scheme.group_size
    options = {"inputs": inputs, "bits": scheme.bits, "group": group, "bias": bias}
    made = FewBitsWeight(pack(rounded.codes, scheme.bits), rounded.scales, zeros, **options)
    return made, decoded(*rounded, scheme.group_size)


@settings(max_examples=150, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group=st.sampled_from([-1, 1, 3, 7, 8, 16, 24, 32, 48, 128]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 150)),
    rows=st.integers(1, 19),
    seed=st.integers(0, 99),
)
def test_values_are_exact_and_products_those_of_float64(bits, symmetric, group, shape, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(shape, generator=generator), torch.randn(shape[0], generator=generator)
    made, values = packed(weight, WeightOnlyScheme(bits, group, symmetric=symmetric), bias)
    assert torch.equal(made.expanded(), values)
    assert torch.equal(made.expanded(torch.bfloat16), values.bfloat16())
    first = shape[0] // 2
    assert torch.equal(made.expanded(first=first), values[first:])
    inputs = torch.randn(rows, shape[1], generator=generator)
    exact = inputs.double() @ values.double().T + bias
    magnitude = inputs.double().abs() @ values.double().abs().T + bias.abs()
    assert ((made.times(inputs) - exact).abs() <= 1e-6 * magnitude).all()


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_of_a_group_need_not_be_neighbours(bits, symmetric):
    codes = torch.randint(0, 2**bits, (5, 40))
    zeros = None if symmetric else torch.randint(0, 2**bits, (5, 3))
    scales, group_of = torch.rand(5, 3), torch.randint(0, 3, (40,), dtype=torch.int32)
    signed = codes - 2**bits * (codes >= 2 ** (bits - 1)) if symmetric else codes
    expected = (signed - (0 if zeros is None else zeros[:, group_of])) * scales[:, group_of]
    options = {"inputs": 40, "bits": bits, "group": 16, "group_of": group_of}
    made = FewBitsWeight(pack(codes, bits), scales, None if zeros is None else pack(zeros, bits), **options)
    assert torch.equal(made.expanded(), expected)
    inputs = torch.randn(3, 40)
    torch.testing.assert_close(made.times(inputs), inputs @ expected.T)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_many_threads_and_many_outputs(bits):
    torch.set_num_threads(2)
    try:
        made, values = packed(torch.randn(700, 256), WeightOnlyScheme(bits, 32))
        inputs = [torch.randn(rows, 256) for rows in range(1, 33)]
        with ThreadPoolExecutor(4) as pool:
            for given_rows, product in zip(inputs, pool.map(made.times, inputs), strict=True):
                torch.testing.assert_close(product, given_rows @ values.T, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(1)


def test_the_end_of_the_words_is_the_end_of_what_is_read():
    """A row whose last words are followed by memory that is not there: its page is the last one."""
    import mmap

    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    guard = torch.frombuffer(memory, dtype=torch.int32, count=page // 4)
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    address = guard.data_ptr() + page
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0) == 0
    try:
        for bits in range(2, 9):
            words = -(-50 // (32 // bits))
            place = guard[-3 * words :].view(3, words)
            place.copy_(pack(torch.randint(0, 2**bits, (3, 50)), bits))
            made = FewBitsWeight(place, torch.ones(3, 1), None, inputs=50, bits=bits, group=50)
            assert made.expanded().shape == (3, 50)
            assert made.times(torch.ones(1, 50)).isfinite().all()
    finally:
        libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 9}, "bits is 9, expected 2 to 8"),
        ({"group": 0}, "expected numbers above 0"),
        ({"words": torch.zeros(2, 5, dtype=torch.int32)}, "words is of 10 numbers, expected 8"),
        ({"words": torch.zeros(2, 4)}, "words is float32, expected int32"),
        ({"scales": torch.ones(2, 3)}, "scales is of 3 groups, expected 2"),
        ({"zeros": torch.zeros(2, 2, dtype=torch.int32)}, "zeros is of 4 numbers, expected 2"),
        ({"bias": torch.zeros(3)}, "bias is of 3 numbers, expected 2"),
        ({"group_of": torch.full((32,), 2, dtype=torch.int32)}, r"group_of is of numbers outside of the groups"),
        ({"words": torch.zeros(2, 4, dtype=torch.int32, device="meta")}, "words is on meta, expected on the CPU"),
    ],
)
def test_wrong_operands_are_refused(change, words):
    given_all = {"words": torch.zeros(2, 4, dtype=torch.int32), "scales": torch.ones(2, 2), "zeros": None}
    options = {"inputs": 32, "bits": 4, "group": 16}
    given_all.update({name: value for name, value in change.items() if name in given_all})
    options.update({name: value for name, value in change.items() if name not in given_all})
    with pytest.raises(OperandError, match=words):
        FewBitsWeight(*given_all.values(), **options)


def test_what_runs_is_counted():
    made, _ = packed(torch.randn(4, 32), WeightOnlyScheme())
    with kernels.counting_steps() as steps:
        made.times(torch.randn(2, 32))
        made.times(torch.randn(2, 32))
        made.expanded()
    assert steps == {"few_bits_product": 2, "expand_few_bits": 1}


def test_codes_may_stand_for_numbers_of_a_table():
    codes, table, scales = torch.randint(0, 16, (3, 40)), torch.randn(16), torch.rand(3, 5)
    made = FewBitsWeight(pack(codes, 4), scales, None, inputs=40, bits=4, group=8, table=table)
    expected = table[codes] * scales.repeat_interleave(8, dim=1)
    assert torch.equal(made.expanded(), expected)
    inputs = torch.randn(2, 40)
    torch.testing.assert_close(made.times(inputs), inputs @ expected.T)
    even = FewBitsWeight(pack(codes, 4), scales[:, :2].contiguous(), None, inputs=40, bits=4, group=32, table=table)
    expected = table[codes] * torch.repeat_interleave(scales[:, :2], torch.tensor([32, 8]), dim=1)
    torch.testing.assert_close(even.times(inputs), inputs @ expected.T)
    with pytest.raises(OperandError, match="bits is 8, expected at most 4 with a table"):
        FewBitsWeight(pack(codes, 8), scales, None, inputs=40, bits=8, group=8, table=table)


def test_wrong_inputs_are_refused():
    made, _ = packed(torch.randn(4, 32), WeightOnlyScheme())
    with pytest.raises(OperandError, match="input is of 62 numbers, expected 64"):
        made.times(torch.randn(2, 31))
    with pytest.raises(OperandError, match="input is of strides"):
        made.times(torch.randn(32, 2).t())
    with pytest.raises(OperandError, match=r"dtype is torch\.float16"):
        made.expanded(torch.float16)
    with pytest.raises(OperandError, match=r"outputs is \(2, 5\), expected a part of the 4"):
        made.expanded(first=2, last=5)
