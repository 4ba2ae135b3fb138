"""Ranking by digits, against ranking by partial selection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inc_torch.pruners import ALLOCATIONS, Limits
from inc_torch.pruners._digit_ranking import DigitRanking
from inc_torch.pruners._ranking import LocalRanking
from tests.unit.kernels.needed import needs_processor

pytestmark = needs_processor

KINDS = {
    "any": lambda count: torch.randn(count).abs(),
    "few": lambda count: torch.randint(0, 4, (count,)).float(),
    "equal": lambda count: torch.full((count,), 0.3),
    "zero": torch.zeros,
    "tiny": lambda count: torch.rand(count) * 1e-40,
    "of many sizes": lambda count: torch.randn(count).exp().pow(20).clamp(max=3e38),
    "nearly equal": lambda count: 1 + torch.randint(0, 3, (count,)) * 2.0**-23,
    "rounded": lambda count: torch.rand(count).bfloat16().float(),
}


@pytest.fixture(autouse=True, scope="module")
def _switched_on():
    """Ranking is by kernels here, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("INC_TORCH_KERNELS", "1")
        yield


@st.composite
def calls(draw):
    """Scores of a few layers, and groups of layers that are ranked together, call after call."""
    sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=5))
    few = st.sampled_from([0.0, 1e-45, 1e-38, 0.5, 1.0, 3.0, 3.4e38, float("inf")])
    value = few if draw(st.booleans()) else st.floats(0, 2.0**100, width=32)
    scores = torch.tensor(draw(st.lists(value, min_size=sum(sizes), max_size=sum(sizes))))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        of_layer = draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
        groups = [[layer for layer, own in enumerate(of_layer) if own == group] for group in (0, 1)]
        groups = [group for group in groups if group]  # layers of number 2 are left as they are
        made.append((groups, [draw(st.integers(0, sum(sizes[layer] for layer in group))) for group in groups]))
    return scores, sizes, made


@given(calls())
@settings(max_examples=300)
@example((torch.ones(3), [3], [([[0]], [2])]))
@example((torch.tensor([1.0, 2.0]), [1, 1], [([[0, 1]], [1]), ([[0]], [0])]))
@example((torch.tensor([1.0, 2.0]), [1, 1], [([[0]], [1]), ([[0, 1]], [0]), ([], [])]))
def test_each_call_prunes_what_the_other_ranking_prunes(case):
    scores, sizes, made = case
    ranking, other = DigitRanking(scores, sizes), LocalRanking(scores, sizes)
    assert torch.equal(ranking.kept(), torch.ones(len(scores), dtype=torch.bool))
    for groups, counts in made:
        assert ranking.prune(groups, counts) == other.prune(groups, counts)
        assert ranking.pruned == other.pruned
    for _ in range(2):
        assert torch.equal(ranking.kept(), other.kept())


@pytest.mark.parametrize("scope", ALLOCATIONS.names())
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_many_units(kind, ratio, scope):
    """Thousands of units a digit, so that some are copied, and some are too many for that."""
    torch.manual_seed(1)
    sizes = [20_000, 1, 3333, 40_000]
    scores = KINDS[kind](sum(sizes))
    before = scores.clone()
    rankings = [DigitRanking(scores, sizes), LocalRanking(scores, sizes)]
    for ranking in rankings:
        ALLOCATIONS.get(scope)().prune(ranking, ratio, Limits(0.2, 0.95))
    assert torch.equal(rankings[0].kept(), rankings[1].kept())
    assert rankings[0].pruned == rankings[1].pruned
    assert torch.equal(scores, before)
    for own, pruned in zip(torch.split(rankings[0].kept(), sizes), rankings[0].pruned, strict=True):
        assert int((~own).sum()) == pruned


def test_what_kernels_cannot_rank_is_said():
    scores = torch.rand(8)
    assert DigitRanking.can_rank(scores)
    assert not DigitRanking.can_rank(scores.double())
    assert not DigitRanking.can_rank(scores[::2])
    assert not DigitRanking.can_rank(scores[:0])
    assert not DigitRanking.can_rank(scores.to("meta"))


def test_they_are_not_used_where_they_are_switched_off(monkeypatch):
    monkeypatch.setenv("INC_TORCH_KERNELS", "0")
    assert not DigitRanking.can_rank(torch.rand(8))
