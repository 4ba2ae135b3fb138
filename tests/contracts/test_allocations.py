"""What every allocation must do, and two other ways to find the same units."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inc_torch.pruners import ALLOCATIONS, Limits
from inc_torch.pruners._ranking import LocalRanking

NAMES = ALLOCATIONS.names()


def kept_by(name: str, scores: torch.Tensor, sizes: Sequence[int], ratio: float, limits: Limits) -> torch.Tensor:
    ranking = LocalRanking(scores, sizes)
    ALLOCATIONS.get(name)().prune(ranking, ratio, limits)
    return ranking.kept()


def floor(ratio: float, units: int) -> int:
    return int(ratio * units + 1e-6)


@st.composite
def cases(draw, most_units: int = 12):
    """Layers with many ties, a ratio and limits; ratios that are multiples of 1/20 as well as any."""
    sizes = draw(st.lists(st.integers(1, most_units), min_size=1, max_size=5))
    scores = draw(st.lists(st.integers(0, 4), min_size=sum(sizes), max_size=sum(sizes)))
    share = st.one_of(st.integers(0, 20).map(lambda part: part / 20), st.floats(0.0, 1.0))
    least, greatest = sorted((draw(share), draw(share)))
    return torch.tensor(scores, dtype=torch.float32), sizes, draw(share), Limits(least, greatest)


def global_units(scores: torch.Tensor, sizes: Sequence[int], ratio: float, limits: Limits) -> list[bool]:
    """The least of every layer first, then one unit after another, cheapest first."""
    layer_of = [layer for layer, size in enumerate(sizes) for _ in range(size)]
    order = sorted(range(len(layer_of)), key=lambda unit: (scores[unit].item(), unit))
    least = [floor(min(limits.least, ratio), size) for size in sizes]
    greatest = [floor(limits.greatest, size) for size in sizes]
    budget, taken, counts = floor(ratio, len(layer_of)), set(), [0] * len(sizes)
    for bounds, stop in ((least, sum(least)), (greatest, budget)):
        for unit in order:
            layer = layer_of[unit]
            if unit not in taken and len(taken) < stop and counts[layer] < bounds[layer]:
                taken.add(unit)
                counts[layer] += 1
    return [unit not in taken for unit in range(len(layer_of))]


def local_units(scores: torch.Tensor, sizes: Sequence[int], ratio: float, limits: Limits) -> list[bool]:
    kept = []
    for part in torch.split(scores, list(sizes)):
        order = sorted(range(len(part)), key=lambda unit: (part[unit].item(), unit))
        gone = order[: floor(min(ratio, limits.greatest), len(part))]
        kept += [unit not in gone for unit in range(len(part))]
    return kept


ANOTHER_WAY = {"global": global_units, "local": local_units}


def test_every_allocation_has_a_second_method():
    assert set(ANOTHER_WAY) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(cases())
@settings(max_examples=150)
@example((torch.tensor([1.0, 1.0, 1.0]), [2, 1], 0.5, Limits()))
@example((torch.tensor([1.0, 2.0]), [1, 1], 0.9, Limits(0.0, 0.98)))  # one unit a layer: none may go
def test_chooses_the_units_of_the_second_method(name, case):
    scores, sizes, ratio, limits = case
    before = scores.clone()
    keep = kept_by(name, scores, sizes, ratio, limits)
    assert keep.dtype == torch.bool
    assert keep.shape == scores.shape
    assert torch.equal(scores, before), "scores were changed"
    assert keep.tolist() == ANOTHER_WAY[name](scores, sizes, ratio, limits)


@pytest.mark.parametrize("name", NAMES)
@given(cases(most_units=60))
@settings(max_examples=60)
def test_counts_and_limits_hold_in_every_layer(name, case):
    scores, sizes, ratio, limits = case
    keep = kept_by(name, scores, sizes, ratio, limits)
    for part, own in zip(torch.split(keep, sizes), torch.split(scores, sizes), strict=True):
        pruned = int((~part).sum())
        assert pruned <= floor(limits.greatest, len(part))
        first = own.argsort(stable=True)[:pruned]
        assert not part[first].any(), "of equal scores the first in order must go first"
    assert int((~keep).sum()) <= floor(ratio, sum(sizes))


@given(cases(most_units=60))
@settings(max_examples=60)
def test_global_prunes_exactly_the_budget_whenever_limits_allow(case):
    scores, sizes, ratio, limits = case
    keep = kept_by("global", scores, sizes, ratio, limits)
    room = sum(floor(limits.greatest, size) for size in sizes)
    assert int((~keep).sum()) == min(floor(ratio, sum(sizes)), room)
    for part in torch.split(keep, sizes):
        assert int((~part).sum()) >= floor(min(limits.least, ratio), len(part))


@given(cases(most_units=4))
@settings(max_examples=60)
def test_global_is_the_cheapest_choice_of_all(case):
    """Every way to share the budget among the layers is tried; layers give their cheapest units.

    The cost of a unit is 2 to the power of its place in the order, so exactly one choice is the cheapest.
    """
    scores, sizes, ratio, limits = case
    keep = kept_by("global", scores, sizes, ratio, limits)
    place = torch.empty(len(scores), dtype=torch.long)
    place[scores.argsort(stable=True)] = torch.arange(len(scores))
    bounds = [range(floor(min(limits.least, ratio), size), floor(limits.greatest, size) + 1) for size in sizes]
    budget = min(floor(ratio, sum(sizes)), sum(floor(limits.greatest, size) for size in sizes))
    cheapest = [sorted(2**unit for unit in part.tolist()) for part in torch.split(place, sizes)]
    costs = [
        sum(sum(costs[:count]) for costs, count in zip(cheapest, counts, strict=True))
        for counts in itertools.product(*bounds)
        if sum(counts) == budget
    ]
    assert sum(2**unit for unit in place[~keep].tolist()) == min(costs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_nothing_and_everything(name, ratio):
    keep = kept_by(name, torch.rand(9), [4, 5], ratio, Limits(0.0, 1.0))
    assert keep.tolist() == [ratio == 0.0] * 9


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_layers_does_not_matter_without_ties(name):
    sizes = [30, 7, 50, 13]
    parts = list(torch.split(torch.randperm(100).float(), sizes))
    limits = Limits(0.2, 0.6)
    keeps = torch.split(kept_by(name, torch.cat(parts), sizes, 0.45, limits), sizes)
    turned = kept_by(name, torch.cat(parts[::-1]), sizes[::-1], 0.45, limits)
    assert torch.equal(torch.cat(keeps[::-1]), turned)
