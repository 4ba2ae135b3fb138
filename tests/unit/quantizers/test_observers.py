"""Ranges, against closed forms and searches over the values themselves."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.quantizers import OBSERVERS, Levels, TensorStatistics, fit_float_grid, fit_grid, observe
from inc_torch.quantizers._statistics import BINS
from inc_torch.quantizers.observers.ema_minmax import EmaMinMax
from inc_torch.quantizers.observers.kl import Kl, _narrowing
from inc_torch.quantizers.observers.kl_divergence import KlDivergence, _Divergence, _without_zeros
from inc_torch.quantizers.observers.minmax import MinMax
from inc_torch.quantizers.observers.percentile import Percentile

ALL = OBSERVERS.names()
UINT8, INT8 = Levels.of(8, signed=False, symmetric=False), Levels.of(8, signed=True)
INT4, UINT4 = Levels.of(4, signed=True), Levels.of(4, signed=False, symmetric=False)
LEVELS = {"uint8": UINT8, "int8": INT8, "int4": INT4, "uint4": UINT4, "uint8 symmetric": Levels.of(8, signed=False)}

SHAPES = {
    "normal": lambda: torch.randn(5000),
    "after a ReLU": lambda: torch.randn(5000).relu(),
    "negative": lambda: -torch.rand(5000),
    "shifted": lambda: torch.rand(5000) + 5,
    "heavy tails": lambda: torch.distributions.StudentT(2.0).sample((5000,)),
    "zeros": lambda: torch.zeros(100),
    "one value": lambda: torch.tensor([-0.3]),
    "a constant": lambda: torch.full((100,), 4.0),
    "ones among zeros": lambda: torch.eye(50).flatten(),
    "tiny": lambda: torch.randn(100) * 1e-30,
    "huge": lambda: torch.randn(100) * 1e30,
}


def quantized(values, low, high, levels):
    scale, zero_point = (part.double() for part in fit_grid(low, high, levels))
    codes = ((values.double() / scale).round() + zero_point).clamp(levels.low, levels.high)
    return (codes - zero_point) * scale


def error_of(values, low, high, levels):
    return (quantized(values, low, high, levels) - values).pow(2).mean().item()


def range_of(name, values, levels):
    return OBSERVERS.get(name)().range(TensorStatistics.of(values), levels)


def test_every_observer_is_registered():
    assert ALL == ["ema_minmax", "kl", "kl_divergence", "minmax", "mse", "percentile"]


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("name", ALL)
def test_ranges_hold_zero_and_end_where_the_values_end(name, levels, make):
    values = make()
    low, high = range_of(name, values, levels)
    assert low.dtype == high.dtype == torch.float64
    assert low.shape == high.shape == (1,)
    assert min(values.min().item(), 0.0) <= low.item() <= 0 <= high.item() <= max(values.max().item(), 0.0)
    if values.any():
        assert low.item() < high.item()


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("name", ALL)
def test_channels_do_not_touch_each_other(name, levels):
    rows = torch.stack([torch.randn(300), torch.randn(300).relu() * 50, torch.zeros(300), torch.full((300,), -2.0)])
    low, high = OBSERVERS.get(name)().range(TensorStatistics.of(rows, axis=0), levels)
    assert low.shape == high.shape == (4,)
    for channel, row in enumerate(rows):
        alone = range_of(name, row, levels)
        assert (low[channel].item(), high[channel].item()) == pytest.approx([end.item() for end in alone])


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("name", sorted(set(ALL) - {"ema_minmax"}))
def test_the_order_of_batches_does_not_matter(name, levels):
    batches = [torch.randn(200), torch.randn(200) * 9, torch.rand(200)]
    ranges = []
    for order in (batches, batches[::-1]):
        seen = TensorStatistics.of(order[0])
        for batch in order[1:]:
            seen.add(TensorStatistics.of(batch))
        ranges.append(OBSERVERS.get(name)().range(seen, levels))
    assert ranges[0] == ranges[1]


@given(st.integers(-20, 20), st.sampled_from(ALL), st.sampled_from(list(LEVELS.values())))
def test_a_tensor_twice_as_large_has_a_range_twice_as_large(exponent, name, levels):
    torch.manual_seed(1)
    values = torch.randn(400)
    low, high = range_of(name, values, levels)
    expected = low.item() * 2.0**exponent, high.item() * 2.0**exponent
    scaled = range_of(name, values * 2.0**exponent, levels)
    assert [end.item() for end in scaled] == pytest.approx(expected)


def test_minmax_is_the_extremes():
    assert [end.item() for end in range_of("minmax", torch.tensor([-1.5, 0.0, 7.0]), UINT8)] == [-1.5, 7.0]


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_moving_average_is_the_recurrence(rate):
    batches = [torch.randn(20) + 3 * k for k in range(-2, 5)]
    seen, low, high = TensorStatistics.of(batches[0]), batches[0].min().item(), batches[0].max().item()
    for batch in batches[1:]:
        seen.add(TensorStatistics.of(batch))
        low += rate * (batch.min().item() - low)
        high += rate * (batch.max().item() - high)
    found = EmaMinMax(rate).range(seen, UINT8)
    assert [end.item() for end in found] == pytest.approx([min(low, 0.0), max(high, 0.0)])


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ConfigError, match=r"rate is .* above 0 and at most 1"):
        EmaMinMax(rate)


@pytest.mark.parametrize("percentile", [51.0, 90.0, 99.0, 99.9])
def test_percentiles_are_quantiles_of_the_values(percentile):
    values = torch.randn(50000)
    seen = TensorStatistics.of(values)
    low, high = Percentile(percentile).range(seen, UINT8)
    cut = 50000 * (1 - percentile / 100)
    for end, below in ((low, cut), (high, 50000 - cut)):
        in_its_bin = ((values - end).abs() < 2.0 ** seen.exponents.item()).sum().item()
        assert (values < end).sum().item() == pytest.approx(below, abs=in_its_bin + 1)


def test_percentiles_are_interpolated_inside_a_bin():
    width = 2.0**-11
    inside = (torch.arange(1000) + 0.5) / 1000 * width
    seen = TensorStatistics.of(torch.cat([torch.full((9000,), -1.0), inside]))
    assert seen.counts[0, BINS // 2].item() == 1000
    low, high = Percentile(97.0).range(seen, INT8)
    assert high.item() == pytest.approx(0.7 * width, rel=1e-3)
    assert -1 <= low.item() < -1 + width


def test_the_hundredth_percentile_is_the_extreme():
    values = torch.randn(1000)
    assert Percentile(100.0).range(TensorStatistics.of(values), INT8) == range_of("minmax", values, INT8)


@pytest.mark.parametrize("percentile", [50.0, 100.1, 0.999, math.nan])
def test_a_percentile_out_of_range_is_refused(percentile):
    with pytest.raises(ConfigError, match=r"percentile is .* above 50 and at most 100"):
        Percentile(percentile)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("make", [SHAPES["normal"], SHAPES["after a ReLU"], SHAPES["heavy tails"], SHAPES["shifted"]])
def test_mse_is_the_least_of_all_observers(make, levels):
    values = make()
    errors = {name: error_of(values, *range_of(name, values, levels), levels) for name in ALL}
    assert errors["mse"] <= 1.01 * min(errors.values())


@pytest.mark.parametrize("levels", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("make", [SHAPES["normal"], SHAPES["heavy tails"]])
def test_mse_of_a_symmetric_range_is_least_of_all_thresholds(make, levels):
    values = make()
    thresholds = (values.abs().max() * torch.logspace(0, -2, 400, dtype=torch.float64)).unsqueeze(1)
    best = min(error_of(values, -threshold, threshold, levels) for threshold in thresholds)
    assert error_of(values, *range_of("mse", values, levels), levels) <= 1.01 * best


@pytest.mark.parametrize("levels", [UINT8, UINT4], ids=["uint8", "uint4"])
def test_mse_of_an_asymmetric_range_is_least_of_all_pairs_of_ends(levels):
    values = torch.cat([torch.randn(3000).exp(), -8 * torch.rand(3000)])  # a tail to clip, and an edge to keep
    shares = torch.linspace(1, 0.1, 30, dtype=torch.float64)
    best = min(
        error_of(values, values.min() * lower.view(1), values.max() * upper.view(1), levels)
        for lower in shares
        for upper in shares
    )
    assert error_of(values, *range_of("mse", values, levels), levels) <= 1.02 * best


def test_mse_of_four_bits_of_a_gaussian_is_the_known_optimum():
    """A uniform quantizer of 16 levels is best with steps of 0.3352 sigma (Max, 1960), here with a level at 0."""
    low, high = range_of("mse", torch.randn(200_000), INT4)
    scale, _ = fit_grid(low, high, INT4)
    assert scale.item() == pytest.approx(0.3352, rel=0.04)


def naive_divergence(counts, first, last, levels):
    """The sums over bins, one after the other."""
    before, inside, after = counts[:first], counts[first : last + 1], counts[last + 1 :]
    original = [inside[0] + sum(before), *inside[1:-1], inside[-1] + sum(after)]
    flat = [0.0] * len(inside)
    for level in range(levels):
        bins = range(level * len(inside) // levels, (level + 1) * len(inside) // levels)
        filled = [i for i in bins if original[i] > 0]
        for i in filled:
            flat[i] = max(sum(inside[j] for j in bins), 0.5) / len(filled)
    total, kept = sum(original), sum(flat)
    pairs = [(p / total, q / kept) for p, q in zip(original, flat, strict=True) if p > 0]
    return sum(p * math.log(p / q) for p, q in pairs)


@pytest.mark.parametrize(("low", "high"), [(-5.0, 9.0), (-2.0, 2.0), (-0.7, 3.0), (-5.0, 0.6)])
def test_divergence_is_that_of_the_bins(low, high):
    seen = TensorStatistics.of(torch.cat([torch.randn(4000), torch.tensor([-5.0, 9.0])]))
    counts = _without_zeros(seen.counts.double())
    divergence = _Divergence.of(counts, BINS // 2, seen, 256).loss(*(torch.tensor([[x]]).double() for x in (low, high)))
    width = 2.0 ** seen.exponents.item()
    first, last = (math.floor(end / width) + BINS // 2 for end in (low, high))
    assert divergence.item() == pytest.approx(naive_divergence(counts[0].tolist(), first, last, 256), rel=1e-6)


def test_divergence_of_flat_values_is_nothing_so_nothing_is_clipped():
    values = (torch.arange(2**14) + 0.5) / 2**14
    for levels in LEVELS.values():
        low, high = KlDivergence().range(TensorStatistics.of(values), levels)
        assert (low.item(), high.item()) == (0.0, values.max().item())


def test_zeros_of_a_relu_do_not_move_the_threshold():
    positive = torch.randn(20000).abs()
    alone = range_of("kl_divergence", positive, UINT8)
    with_zeros = range_of("kl_divergence", torch.cat([positive, torch.zeros(100_000)]), UINT8)
    assert with_zeros[1].item() == pytest.approx(alone[1].item(), rel=0.1)


def test_what_clips_an_outlier_and_what_does_not():
    values = torch.randn(20000)
    values[0] = 60.0
    for levels in (UINT8, INT8):
        for name in ("percentile", "kl_divergence"):
            low, high = range_of(name, values, levels)
            assert 2 < max(-low.item(), high.item()) < 6
        for name in ("minmax", "kl"):
            assert range_of(name, values, levels)[1].item() > 59


def test_kl_stops_before_the_first_move_that_costs_more():
    """Of evenly spread values each cell that is clipped costs more than the finer levels gain."""
    values = (torch.arange(2**14) + 0.5) / 2**13 - 1
    low, high = Kl().range(TensorStatistics.of(values), UINT8)
    cell = (values.max() - values.min()).item() / 2048
    assert low.item() == values.min().item()
    assert high.item() == pytest.approx(values.max().item() - cell)


def naive_narrowing(below):
    """All 100,000 steps, one after the other."""
    lower = upper = first = 0
    last = len(below) - 1
    while lower + upper < 100_000:
        next_first, next_last = first, last
        while next_first < last and below[next_first] < (lower + 1) / 100_000:
            next_first += 1
        while next_last > first and below[next_last] > 1 - (upper + 1) / 100_000:
            next_last -= 1
        if next_first - first > last - next_last:
            lower, next_last = lower + 1, last
        else:
            upper, next_first = upper + 1, first
        if (next_first, next_last) != (first, last):
            first, last = next_first, next_last
            yield first, last + 1


@pytest.mark.parametrize(
    "make", [SHAPES["normal"], SHAPES["after a ReLU"], SHAPES["heavy tails"], SHAPES["a constant"]]
)
def test_steps_that_move_nothing_can_be_jumped_over(make):
    counts = torch.histogram(make(), 64).hist.double()
    below = (counts.cumsum(0) / counts.sum()).tolist()
    assert list(_narrowing(below)) == list(naive_narrowing(below))


@pytest.mark.parametrize(
    ("values", "finite"), [([1.0, math.nan], "1 of 2"), ([math.inf, -math.inf], "0 of 2"), ([], "0 of 0")]
)
def test_a_tensor_without_a_range_is_refused(values, finite):
    with pytest.raises(ModelError, match=rf"{finite} values of a tensor .* are finite"):
        observe(torch.tensor(values), MinMax(), INT8)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("name", ALL)
def test_observing_a_weight_on_any_axis(name, axis):
    weight = torch.randn(3, 4, 5) * torch.tensor([1.0, 10.0, 0.1, 5.0, 2.0])
    scale, zero_point = observe(weight, OBSERVERS.get(name)(), INT8, axis)
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
    for channel, part in enumerate(weight.movedim(axis, 0)):
        alone = observe(part, OBSERVERS.get(name)(), INT8)
        assert scale[channel].item() == pytest.approx(alone[0].item())
        assert zero_point[channel] == alone[1][0] == 0


def test_observing_more_channels_than_are_taken_at_once():
    weight = torch.randn(5, 150)
    scale, zero_point = observe(weight, MinMax(), UINT8, axis=1)
    low, high = weight.amin(0).clamp(max=0), weight.amax(0).clamp(min=0)
    torch.testing.assert_close(scale, (high - low) / 255)
    assert torch.equal(zero_point, (-low / scale).round().int())


def test_float_grids_meet_both_ends():
    table = torch.randn(6, 50) + torch.arange(6).unsqueeze(1)
    scale, zero_point = fit_float_grid(table.amin(1), table.amax(1))
    ends = (torch.tensor([[0.0, 255.0]]) - zero_point.unsqueeze(1)) * scale.unsqueeze(1)
    torch.testing.assert_close(ends, torch.stack([table.amin(1), table.amax(1)], 1), rtol=1e-4, atol=1e-5)


def test_float_grid_of_one_value_is_that_value():
    scale, zero_point = fit_float_grid(torch.tensor([7.5]), torch.tensor([7.5]))
    assert (scale.item(), zero_point.item()) == (1.0, -7.5)


def test_time_of_each_observer(note):
    seen = [TensorStatistics.of(torch.distributions.StudentT(3.0).sample((4000,))) for _ in range(100)]
    for name in ALL:
        observer, began = OBSERVERS.get(name)(), time.perf_counter()
        for statistics in seen:
            observer.range(statistics, UINT8)
        milliseconds = (time.perf_counter() - began) * 1000 / len(seen)
        note(f"{name}: {milliseconds:.1f} ms for the statistics of a tensor")
        assert milliseconds < 100, "ten times what is planned"
