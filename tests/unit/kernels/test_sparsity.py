"""Scores of units, zeros of masks and N:M groups, against torch in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_torch import kernels
from inc_torch.kernels import OperandError
from tests.unit.kernels.needed import needs_processor, run

pytestmark = needs_processor

BLOCKS = [1, 2, 3, 4, 8, 16, 17, 40]
WIDTHS = [1, 5, 15, 16, 17, 64, 100, 2048, 2049, 4100]
REDUCTIONS = ["mean", "sum", "max", "net"]


def reduced(values, block, reduction):
    """Of [units * block, columns] in float64."""
    blocks = values.double().unflatten(0, (-1, block))
    if reduction == "net":
        return blocks.sum(1).abs()
    blocks = blocks.abs()
    return blocks.amax(1) if reduction == "max" else blocks.mean(1) if reduction == "mean" else blocks.sum(1)


def shifted(tensor, offset=1):
    """The same values at another place of memory, between guards; and the memory."""
    memory = torch.full((tensor.numel() + offset + 64,), 7.5).to(tensor.dtype)
    place = memory[offset : offset + tensor.numel()].view(tensor.shape)
    place.copy_(tensor)
    return place, memory


def is_untouched(memory, offset, size):
    rest = torch.cat([memory[:offset], memory[offset + size :]])
    return torch.equal(rest, torch.full_like(rest, 7.5))


def scored(first, second=None, *, block=1, reduction="mean", offset=1, **options):
    """Scores, whether they are finite, and that no other memory was written."""
    output, memory = shifted(torch.zeros(len(first) // block, first.shape[1]), offset)
    finite = torch.full((1,), 7)
    columns = first.shape[1]
    run(kernels.block_scores(first, second, output, finite, reduction, columns=columns, block=block, **options))
    assert is_untouched(memory, offset, output.numel())
    return output, {0: False, 1: True}[int(finite)]


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("width", WIDTHS)
def test_scores_of_integers_are_exact(block, width, reduction):
    for units in (1, 3):
        weight = torch.randint(-9, 10, (units * block, width)).float()
        gradient = torch.randint(-9, 10, weight.shape).float()
        output, finite = scored(weight, gradient, block=block, reduction=reduction)
        assert torch.equal(output, reduced(weight * gradient, block, reduction).float())
        assert finite


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
@pytest.mark.parametrize("block", [1, 2, 4, 8, 16])
def test_scores_are_those_of_torch_in_every_bit(block, reduction):
    """Torch adds up rows in order, too (but where columns fill no vector), and fuses the fading with the sum."""
    weight, gradient, before = torch.randn(6 * block, 768), torch.randn(6 * block, 768), torch.rand(6, 768)
    output, _ = scored(weight, gradient, block=block, reduction=reduction, before=before, decay=0.9)
    blocks = (weight * gradient).abs().unflatten(0, (6, block))
    expected = blocks.amax(1) if reduction == "max" else getattr(blocks, reduction)(1)
    assert torch.equal(output, expected.add_(before, alpha=0.9))


def test_errors_of_many_rows_stay_small():
    weight = torch.rand(50_000, 33)
    exact = reduced(weight, 50_000, "sum")
    worst = ((scored(weight, block=50_000, reduction="sum")[0] - exact) / exact).abs().max()
    one_after_the_other = torch.from_numpy(np.add.accumulate(weight.numpy(), 0)[-1])
    assert worst < ((one_after_the_other - exact) / exact).abs().max() / 2


def test_big_outputs_go_past_the_caches_to_the_same_values():
    weight, gradient = torch.randn(2, 300_003), torch.randn(2, 300_003)
    for offset in (0, 16, 1):
        output, finite = scored(weight, gradient, block=2, offset=offset)
        torch.testing.assert_close(output.double(), reduced(weight * gradient, 2, "mean"))
        assert finite


def test_one_factor_alone():
    weight = torch.randint(-9, 10, (8, 33)).float()
    output, _ = scored(weight, block=4, reduction="sum")
    assert torch.equal(output, reduced(weight, 4, "sum").float())


@pytest.mark.parametrize("block", [1, 4, 16])
def test_the_past_fades_in_place(block):
    weight, gradient = (torch.randint(-9, 10, (3 * block, 37)).float() for _ in range(2))
    before = torch.randint(0, 9, (3, 37)).float()
    expected = reduced(weight * gradient, block, "sum").float() + before / 2
    finite = torch.zeros(1, dtype=torch.int64)
    options = {"columns": 37, "block": block, "before": before, "decay": 0.5}
    run(kernels.block_scores(weight, gradient, before, finite, "sum", **options))
    assert torch.equal(before, expected)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("block", [1, 2, 3, 4, 17])
def test_what_is_not_finite_is_seen_wherever_it_is(block, reduction, bad):
    for place in (0, 15, 16, 36):
        for row in range(block):
            weight = torch.ones(2 * block, 37)
            weight[block + row, place] = bad
            output, finite = scored(weight, torch.ones_like(weight), block=block, reduction=reduction)
            assert not finite
            assert not output[1, place].isfinite()
            assert output.isfinite().sum() == output.numel() - 1


def test_products_and_sums_that_overflow_are_seen():
    big = torch.full((4, 18), 3e38)
    assert scored(big, block=4, reduction="max")[1]
    assert not scored(big, block=4, reduction="sum")[1]
    assert not scored(big, big, block=1)[1]


def test_a_past_that_is_not_finite_does_not_count():
    past = torch.full((1, 20), math.inf)
    output, finite = scored(torch.ones(1, 20), before=past, decay=0.9)
    assert finite
    assert torch.equal(output, past)


def test_without_an_output_only_the_finding_is_made():
    finite = torch.zeros(1, dtype=torch.int64)
    weight = torch.ones(3, 50)
    run(kernels.block_scores(weight, weight, None, finite, "mean", columns=50))
    assert finite == 1
    weight[2, 49] = math.nan
    run(kernels.block_scores(weight, weight, None, finite, "mean", columns=50))
    assert finite == 0


def test_small_numbers_are_no_zeros():
    weight = torch.full((4, 17), 1e-22)
    output, _ = scored(weight, weight, block=4)
    assert torch.equal(output, (weight * weight)[:1])
    assert (output > 0).all()


def test_long_rows_may_be_cut_for_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        weight = torch.randint(-9, 10, (4, 50_001)).float()
        assert torch.equal(scored(weight)[0], weight.abs())
        weight[3, 50_000] = math.inf
        assert not scored(weight)[1]
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ zeros


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("width", WIDTHS)
def test_zeros_are_written_where_nothing_is_kept(block, width):
    values, memory = shifted(torch.randn(3 * block, width))
    keep = torch.rand(3, width) < 0.5
    expected = values * keep.repeat_interleave(block, 0)
    run(kernels.zero_blocks(values, keep, columns=width, block=block))
    assert torch.equal(values, expected)
    assert is_untouched(memory, 1, values.numel())


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_pruned_values_that_are_not_finite_become_zero(bad):
    values = torch.full((4, 21), bad)
    keep = torch.zeros(1, 21, dtype=torch.bool)
    keep[0, 20] = True
    run(kernels.zero_blocks(values, keep, columns=21, block=4))
    assert not values[:, :20].any()
    assert not values[:, 20].isfinite().any()


# ------------------------------------------------------------------------------------------------ N:M


def picked(scores, pruned):
    """True at the ``pruned`` smallest of each group, of equal ones the first."""
    order = scores.argsort(dim=1, stable=True)[:, :pruned]
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order, value=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
@pytest.mark.parametrize(("pruned", "size"), [(2, 4), (1, 4), (3, 4), (1, 2), (2, 3), (4, 8), (7, 16), (5, 32)])
@pytest.mark.parametrize("groups", [1, 15, 16, 17, 1000])
def test_groups(groups, pruned, size, reduction):
    scores = torch.randint(0, 6, (groups, size)).float()
    scores, _ = shifted(scores)
    keep = torch.rand(groups) < 0.4
    group_scores, memory = shifted(torch.zeros(groups))
    mask, mask_memory = torch.zeros(2, groups, size, dtype=torch.bool), torch.rand(groups, size) < 2
    step = kernels.pick_in_groups(
        scores, pruned, group_scores=group_scores, reduction=reduction, keep=keep, mask=mask[0]
    )
    run(step)
    cheap = picked(scores, pruned)
    own = torch.where(cheap, scores, 0).double()
    expected = own.amax(1) if reduction == "max" else own.mean(1) if reduction == "mean" else own.sum(1)
    assert torch.equal(group_scores, expected.float())
    assert torch.equal(mask[0], ~cheap | keep[:, None])
    assert not mask[1].any()
    assert mask_memory.all()
    assert is_untouched(memory, 1, groups)


@given(st.lists(st.floats(0, 2.0**127, width=32), min_size=4, max_size=4), st.integers(1, 3))
@settings(max_examples=300)
def test_any_group_of_four(values, pruned):
    scores = torch.tensor([values])
    mask, keep = torch.empty(1, 4, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    run(kernels.pick_in_groups(scores, pruned, keep=keep, mask=mask))
    assert torch.equal(mask, ~picked(scores, pruned))


# ------------------------------------------------------------------------------------------------ operands


def test_wrong_operands_are_refused_when_the_step_is_built():
    good, unit, finite = torch.ones(8, 6), torch.ones(2, 6), torch.ones(1, dtype=torch.int64)
    keep = torch.ones(2, 6, dtype=torch.bool)
    scores = {"finite": finite, "reduction": "mean", "columns": 6, "block": 4}
    for build, message in (
        (lambda: kernels.block_scores(good.double(), None, unit, **scores), "first is float64, expected float32"),
        (lambda: kernels.block_scores(good.t(), None, unit, **scores), "first is of strides .* contiguous"),
        (lambda: kernels.block_scores(good, good[:4], unit, **scores), "second is of 24 numbers, expected 48"),
        (lambda: kernels.block_scores(good, None, unit[0], **scores), "output is of 6 numbers, expected 12"),
        (lambda: kernels.block_scores(good, None, unit, before=good, **scores), "before is of 48 numbers"),
        (lambda: kernels.block_scores(good[:7], None, unit, **scores), "blocks of 4 rows of 6 columns"),
        (lambda: kernels.block_scores(good[:0], None, unit, **scores), "first is empty"),
        (lambda: kernels.zero_blocks(good, keep.float(), columns=6, block=4), "keep is float32, expected bool"),
        (lambda: kernels.zero_blocks(good, keep[:1], columns=6, block=4), "keep is of 6 numbers, expected 12"),
        (lambda: kernels.pick_in_groups(good[0], 2), r"scores is of shape \(6,\), expected \[groups, size\]"),
        (lambda: kernels.pick_in_groups(good, 2, mask=torch.ones(8, 6, dtype=torch.bool)), "keep is given without"),
        (lambda: kernels.pick_in_groups(good, 2, group_scores=unit), "group_scores is of 12 numbers, expected 8"),
    ):
        with pytest.raises(OperandError, match=message):
            build()
