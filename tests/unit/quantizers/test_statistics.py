"""What calibration remembers: exact counts, in any order of batches."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inc_torch.quantizers import TensorStatistics
from inc_torch.quantizers._density import Density
from inc_torch.quantizers._statistics import BINS


def merged(batches, axis=None):
    seen = TensorStatistics.of(batches[0], axis)
    for batch in batches[1:]:
        seen.add(TensorStatistics.of(batch, axis))
    return seen


def naive_counts(row, exponent):
    """One value after the other."""
    counts = [0] * BINS
    for value in row.double().flatten().tolist():
        counts[math.floor(value / 2.0**exponent) + BINS // 2] += 1
    return counts


def same(left, right):
    return all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in ("low", "high", "exponents", "counts")
    )


def test_counts_are_those_of_one_value_after_the_other():
    values = torch.randn(3, 50, 2) * torch.tensor([1.0, 1e-3, 300.0]).view(3, 1, 1)
    seen = TensorStatistics.of(values, axis=0)
    for channel in range(3):
        assert seen.counts[channel].tolist() == naive_counts(values[channel], seen.exponents[channel].item())


def test_extremes_with_and_without_zero():
    seen = merged([torch.tensor([2.0, 5.0]), torch.tensor([3.0, 7.0])])
    assert (seen.low.item(), seen.high.item()) == (0.0, 7.0)
    assert (seen.least.item(), seen.greatest.item()) == (2.0, 7.0)
    assert [low.item() for low in seen.batch_lows] == [2.0, 3.0]
    assert [high.item() for high in seen.batch_highs] == [5.0, 7.0]


def test_batches_in_any_order_are_the_whole():
    batches = [torch.randn(30) * 10.0**k for k in (-4, 0, 3)] + [torch.tensor([1.0, -1.0, 0.0, 0.5])]
    whole = TensorStatistics.of(torch.cat(batches))
    for order in permutations(batches):
        assert same(merged(order), whole)


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), min_size=2, max_size=4))
def test_any_batches_are_the_whole(rows):
    batches = [torch.tensor(row) for row in rows]
    whole = TensorStatistics.of(torch.cat(batches))
    assert same(merged(batches), whole)
    assert same(merged(batches[::-1]), whole)


def test_powers_of_two_stay_in_the_bin_that_begins_with_them():
    seen = merged([torch.tensor([1.0]), torch.tensor([64.0])])
    assert seen.counts[0].nonzero().flatten().tolist() == [
        BINS // 2 + int(value / 2.0 ** seen.exponents.item()) for value in (1.0, 64.0)
    ]


def test_the_greatest_magnitude_uses_at_least_half_of_a_side():
    for magnitude in (1.0, 1.5, 1.999, 2.0, 3e-30, 1e30):
        for sign in (-1, 1):
            seen = TensorStatistics.of(torch.tensor([sign * magnitude]))
            widths = magnitude / 2.0 ** seen.exponents.item()
            assert BINS / 4 <= widths <= BINS / 2


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels_on_any_axis(axis):
    values = torch.randn(3, 4, 5)
    seen = TensorStatistics.of(values, axis)
    for channel, part in enumerate(values.movedim(axis, 0)):
        alone = TensorStatistics.of(part)
        assert torch.equal(seen.counts[channel], alone.counts[0])
        assert (seen.low[channel], seen.high[channel]) == (alone.low[0], alone.high[0])


@pytest.mark.parametrize("shape", [(1, 200_000), (7, 70_000), (3, 9), (2000, 3)])
def test_tensors_of_many_pieces_are_counted_whole(shape):
    values = torch.randn(shape)
    seen = TensorStatistics.of(values, axis=0)
    assert seen.counts.sum(1).tolist() == [shape[1]] * shape[0]
    last = TensorStatistics.of(values[-1])
    assert torch.equal(seen.counts[-1], last.counts[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    values = torch.randn(500).to(torch.bfloat16)
    assert same(TensorStatistics.of(values.to(dtype)), TensorStatistics.of(values.float()))


def test_zeros_take_part_in_any_sum():
    zeros = TensorStatistics.of(torch.zeros(10))
    assert (zeros.low.item(), zeros.high.item()) == (0.0, 0.0)
    zeros.add(TensorStatistics.of(torch.tensor([3.0])))
    assert zeros.counts[0, BINS // 2].item() == 10
    assert zeros.counts.sum().item() == 11


def test_a_copy_is_changed_alone():
    seen = TensorStatistics.of(torch.tensor([1.0, -2.0]))
    copy = seen.copy()
    copy.add(TensorStatistics.of(torch.tensor([9.0])))
    assert same(seen, TensorStatistics.of(torch.tensor([1.0, -2.0])))
    assert len(seen.batch_lows) == 1
    assert copy.high.item() == 9.0


def test_nothing_of_the_graph_is_kept():
    seen = TensorStatistics.of(torch.ones(3, requires_grad=True) * 2)
    assert not (seen.low.requires_grad or seen.batch_highs[0].requires_grad)


def test_centers_are_those_of_the_values():
    values = torch.tensor([-3.0, 0.7, 2.9])
    seen = TensorStatistics.of(values)
    centers = seen.centers()[0][seen.counts[0] > 0]
    assert (centers - values).abs().max() <= 2.0 ** seen.exponents.item() / 2


def rounded(values, first, step, levels):
    return first + step * ((values - first) / step).round().clamp(0, levels - 1)


@pytest.mark.parametrize("levels", [2, 16, 256])
@pytest.mark.parametrize(("first", "last"), [(-5.0, 5.0), (-1.0, 2.0), (0.0, 1.0), (2.0, 9.0), (-9.0, -6.0)])
def test_squared_error_is_that_of_the_values(first, last, levels):
    values = torch.randn(3, 20000, dtype=torch.float64)
    density = Density.of(TensorStatistics.of(values, axis=0))
    step = (last - first) / (levels - 1)
    grid = torch.full((3, 1), first, dtype=torch.float64), torch.full((3, 1), step, dtype=torch.float64)
    expected = (values - rounded(values, first, step, levels)).pow(2).sum(1)
    torch.testing.assert_close(density.squared_error(*grid, levels)[:, 0], expected, rtol=0.01, atol=0)


def test_squared_error_of_many_grids_is_that_of_each():
    density = Density.of(TensorStatistics.of(torch.randn(2, 500), axis=0))
    first, step = -torch.rand(2, 700, dtype=torch.float64), torch.rand(2, 700, dtype=torch.float64) + 0.01
    together = density.squared_error(first, step, 256)
    for grid in (0, 300, 699):
        one = slice(grid, grid + 1)
        torch.testing.assert_close(together[:, one], density.squared_error(first[:, one], step[:, one], 256))


def test_density_of_equal_bins_keeps_values_and_ends():
    density = Density.of(TensorStatistics.of(torch.randn(2, 1000), axis=0))
    equal = density.in_equal_bins(100)
    assert equal.masses[:, -1].tolist() == [1000.0, 1000.0]
    assert torch.equal(equal.borders[:, [0, -1]], density.borders[:, [0, -1]])
    points = equal.borders[:, 10:90:10]
    torch.testing.assert_close(equal.masses_below(points), density.masses_below(points))


@pytest.mark.parametrize("value", [3.0, -2.0, 0.0, 1.7])
def test_density_of_one_value_is_a_step(value):
    for density in (of := Density.of(TensorStatistics.of(torch.full((10,), value))), of.in_equal_bins(8)):
        held = of.borders[0, -1].item()
        points = torch.tensor([[held - 1e-3, held, held + 1e-3]], dtype=torch.float64)
        assert density.masses_below(points).tolist() == [[0.0, 10.0, 10.0]]
