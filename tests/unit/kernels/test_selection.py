"""Selection of the smallest scores by digits of their bits, against counting and sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch import kernels
from inc_torch.kernels import OperandError
from tests.unit.kernels.needed import needs_processor, run

pytestmark = needs_processor

DIGITS = [(20, 11), (10, 10), (0, 10), (23, 8), (0, 1), (28, 3)]
KINDS = {
    "any": lambda count: torch.randn(count).abs(),
    "few": lambda count: torch.randint(0, 3, (count,)).float() / 4,
    "equal": lambda count: torch.full((count,), 0.3),
    "tiny": lambda count: torch.rand(count) * 1e-40,
    "huge": lambda count: torch.rand(count) * 3e38,
}
SIZES = [[1], [16], [3, 0, 40], [17, 5, 100, 1], [5000, 33]]


def pieces_of(sizes):
    ends = torch.tensor(sizes).cumsum(0)
    return torch.stack([ends - torch.tensor(sizes), ends], 1)


def bits_of(scores):
    return scores.view(torch.int32).long() & 0x7FFFFFFF


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(3)
    return KINDS[request.param]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("shift", "width"), DIGITS)
def test_digits_are_counted_by_piece(kind, sizes, shift, width):
    scores = kind(sum(sizes) + 1)[1:]
    bits = torch.split(bits_of(scores), sizes)
    prefixes = torch.stack([own[:1].sum() >> (shift + width) for own in bits])
    counts = torch.full((len(sizes), 1 << width), -1)
    run(kernels.count_digits(scores, pieces_of(sizes), prefixes, counts, shift=shift))
    for own, prefix, found in zip(bits, prefixes, counts, strict=True):
        counted = (own >> shift)[own >> (shift + width) == prefix] & ((1 << width) - 1)
        assert torch.equal(found, torch.bincount(counted, minlength=1 << width))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("shift", [0, 10, 20, 30])
def test_what_has_a_prefix_is_collected_in_order(kind, sizes, shift):
    scores = kind(sum(sizes))
    bits = torch.split(bits_of(scores), sizes)
    prefixes = torch.stack([own[-1:].sum() >> shift for own in bits])
    found = [own[own >> shift == prefix] for own, prefix in zip(bits, prefixes, strict=True)]
    ends = torch.tensor([len(own) for own in found]).cumsum(0)
    places = ends - torch.tensor([len(own) for own in found])
    output = torch.full((int(ends[-1]) + 40,), -1, dtype=torch.int32)
    run(kernels.collect_prefix(scores, pieces_of(sizes), prefixes, places, output, shift=shift))
    assert torch.equal(output[: ends[-1]].long(), torch.cat(found))
    assert (output[ends[-1] :] == -1).all()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_kept_is_what_sorting_keeps(kind, sizes):
    scores = kind(sum(sizes))
    thresholds, ties, expected = [], [], []
    for own in torch.split(bits_of(scores), sizes):
        count = len(own) // 3
        order = own.argsort(stable=True)
        limit = int(own[order[count - 1]]) if count else 0
        thresholds.append(limit)
        ties.append(count - int((own < limit).sum()))
        expected.append(torch.ones(len(own), dtype=torch.bool).index_fill_(0, order[:count], value=False))
    memory = torch.zeros(len(scores) + 65, dtype=torch.bool)
    keep = memory[1 : 1 + len(scores)]
    run(kernels.keep_largest(scores, pieces_of(sizes), torch.tensor(thresholds), torch.tensor(ties), keep))
    assert torch.equal(keep, torch.cat(expected))
    assert not memory[0]
    assert not memory[1 + len(scores) :].any()


@given(st.lists(st.sampled_from([0.0, -0.0, 1e-45, 0.5, 1.0]), min_size=1, max_size=70), st.data())
@settings(max_examples=200)
def test_of_equal_scores_the_first_go(values, data):
    scores = torch.tensor(values)
    threshold = data.draw(st.sampled_from([0.0, 1e-45, 0.5, 1.0]))
    ties = data.draw(st.integers(0, values.count(threshold)))
    keep = torch.empty(len(values), dtype=torch.bool)
    limit = bits_of(torch.tensor([threshold]))
    run(kernels.keep_largest(scores, pieces_of([len(values)]), limit, torch.tensor([ties]), keep))
    places = [place for place, value in enumerate(values) if value == threshold]
    expected = [value > threshold or place in places[ties:] for place, value in enumerate(values)]
    assert keep.tolist() == expected


def test_wrong_operands_are_refused_when_the_step_is_built():
    scores, pieces, ones = torch.ones(20), pieces_of([12, 8]), torch.ones(2, dtype=torch.int64)
    counts = torch.ones(2, 1024, dtype=torch.int64)
    output, keep = torch.ones(20, dtype=torch.int32), torch.ones(20, dtype=torch.bool)
    for build, message in (
        (lambda: kernels.count_digits(scores.double(), pieces, ones, counts, shift=0), "scores is float64"),
        (lambda: kernels.count_digits(scores[::2], pieces, ones, counts, shift=0), "scores is of strides"),
        (lambda: kernels.count_digits(scores, pieces + 1, ones, counts, shift=0), "pieces is outside the scores"),
        (lambda: kernels.count_digits(scores, pieces - 1, ones, counts, shift=0), "pieces is outside the scores"),
        (lambda: kernels.count_digits(scores, pieces.flip(1), ones, counts, shift=0), "pieces is .* expected"),
        (lambda: kernels.count_digits(scores, pieces.flatten(), ones, counts, shift=0), r"expected \[pieces, 2\]"),
        (lambda: kernels.count_digits(scores, pieces, ones[:1], counts, shift=0), "prefixes is of 1 numbers"),
        (lambda: kernels.count_digits(scores, pieces, ones, counts[:, :1000].clone(), shift=0), "counts is of shape"),
        (lambda: kernels.count_digits(scores, pieces, ones, counts, shift=22), "counts is of shape .* at shift=22"),
        (lambda: kernels.collect_prefix(scores, pieces, ones, ones, scores, shift=0), "output is float32"),
        (lambda: kernels.collect_prefix(scores, pieces, ones, ones, output, shift=31), "shift is 31, expected 0 to 30"),
        (lambda: kernels.keep_largest(scores, pieces, ones, ones, keep[:9]), "keep is of 9 numbers, expected 20"),
        (lambda: kernels.keep_largest(scores, pieces, ones, ones.float(), keep), "ties is float32, expected int64"),
    ):
        with pytest.raises(OperandError, match=message):
            build()
