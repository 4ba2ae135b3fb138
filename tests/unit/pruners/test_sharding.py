"""Units on several ranks are scored, ranked and masked exactly as in one process."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from inc_torch.pruners import ALLOCATIONS, Limits, MatrixView, parse_pattern
from inc_torch.pruners._parts import Part
from inc_torch.pruners._ranking import LocalRanking
from inc_torch.pruners._seam import Seam
from inc_torch.pruners._sharded_ranking import ShardedRanking
from tests.unit.pruners.threads import run_threads
from tests.unit.pruners.vectors import Conv1D

UNITS = {
    "1x1": (1, 1),
    "4x1": (4, 1),
    "1x4": (1, 4),
    "2x2": (2, 2),
    "8x1": (8, 1),
    "channelx1": (8, 1),
    "1xchannel": (1, 1),
    "2:4": (1, 4),
    "1:2": (1, 2),
}
"""Rows and columns that a weight must be divisible by; powers of two, so that means of integers are exact."""
KINDS = {
    "linear": lambda out, inner: nn.Linear(inner, out),
    "conv": lambda out, inner: nn.Conv1d(inner, out, 3),
    "transposed": lambda out, inner: nn.ConvTranspose1d(inner, out, 2),
    "hf": lambda out, inner: Conv1D(out, inner),
}


def grid_of(pattern: str, module: nn.Module, reduction: str = "mean"):
    return parse_pattern(pattern).grid(MatrixView.of(module, module.weight.shape), reduction)


@st.composite
def models(draw):
    """A pattern, a reduction and weights of integers, many equal, many zero; some layers are no shards but copies."""
    pattern = draw(st.sampled_from(sorted(UNITS)))
    rows, columns = UNITS[pattern]
    reduction = draw(st.sampled_from(["mean", "sum", "max"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        out = rows if pattern == "channelx1" else rows * draw(st.integers(1, 5))
        module = KINDS[draw(st.sampled_from(sorted(KINDS)))](out, columns * draw(st.integers(1, 4)))
        most = draw(st.sampled_from([0, 1, 2, 5, 1000]))
        weight = torch.randint(-most, most + 1, module.weight.shape, generator=generator).float()
        layers.append((grid_of(pattern, module, reduction), weight, draw(st.integers(0, 4)) == 0))
    return pattern, reduction, layers


def units_of(grids, scores: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([grid.unit_scores(own) for grid, own in zip(grids, scores, strict=True)])


def masks_of(grids, scores: list[torch.Tensor], ranking, scope: str, ratio: float, limits: Limits):
    ALLOCATIONS.get(scope)().prune(ranking, ratio, limits)
    keeps = torch.split(ranking.kept(), [grid.units for grid in grids])
    return [grid.mask(own, keep) for grid, own, keep in zip(grids, scores, keeps, strict=True)]


def rows_of(rank: int, ranks: int, weight: torch.Tensor) -> torch.Tensor:
    chunks = weight.chunk(ranks)
    return chunks[rank] if rank < len(chunks) else weight[:0]


SHARES = st.one_of(st.integers(0, 10).map(lambda part: part / 10), st.floats(0.0, 1.0))


@given(models(), st.integers(1, 5), st.sampled_from(["global", "local"]), SHARES, SHARES, SHARES)
@settings(max_examples=150)
def test_masks_are_those_of_one_process(model, ranks, scope, ratio, one, other):
    _, reduction, layers = model
    grids, weights = [grid for grid, _, _ in layers], [weight for _, weight, _ in layers]
    limits = Limits(min(one, other), max(one, other))
    scores = [grid.reduce(weight) for grid, weight in zip(grids, weights, strict=True)]
    ranking = LocalRanking(units_of(grids, scores), [grid.units for grid in grids])
    expected = masks_of(grids, scores, ranking, scope, ratio, limits)
    sharded = [not is_copy and grid.first_axis() is not None for grid, _, is_copy in layers]

    def on_rank(rank: int, exchange):
        parts = [
            Part.of_shard(grid, len(weight), rank, ranks) if cut else Part.of_copy(grid, rank)
            for grid, weight, cut in zip(grids, weights, sharded, strict=True)
        ]
        local = [rows_of(rank, ranks, weight) if cut else weight for weight, cut in zip(weights, sharded, strict=True)]
        assert all(part.is_copy or part.length == len(own) for part, own in zip(parts, local, strict=True))
        sizes = [math.prod(part.grid.score_shape) for part in parts]
        flat = torch.cat([part.reduce(own).flatten() for part, own in zip(parts, local, strict=True)])
        entries = [math.prod(grid.score_shape) for grid in grids]
        seam = Seam(parts, entries, exchange, torch.device("cpu"))
        assert seam.add_(flat, [rank == 0, False], greatest=reduction == "max") == [True, False]
        own_grids = [part.grid for part in parts]
        own_scores = [
            part.view(grid.score_shape) for part, grid in zip(torch.split(flat, sizes), own_grids, strict=True)
        ]
        units = Seam(parts, [grid.units for grid in grids], exchange, torch.device("cpu"))
        ranking = ShardedRanking(
            units_of(own_grids, own_scores), parts, [grid.units for grid in grids], exchange, units
        )
        masks = masks_of(own_grids, own_scores, ranking, scope, ratio, limits)
        for index, part in enumerate(parts):
            assert torch.equal(own_scores[index], part.cut(scores[index], part.grid.score_shape)), (rank, index)
            assert torch.equal(masks[index], part.cut(expected[index], part.grid.mask_shape)), (rank, index)
            wide = grids[index].expand(expected[index])
            assert torch.equal(part.expand(masks[index]), rows_of(rank, ranks, wide) if sharded[index] else wide)
            tensor = torch.ones_like(local[index])
            part.apply_(tensor, masks[index])
            assert torch.equal(tensor, part.expand(masks[index]).float())
        return True

    assert all(run_threads(on_rank, ranks))


@st.composite
def rankings(draw):
    """Scores of any size, drawn from few values or from all that float32 has; layers of 1 to 40 rows of 1 to 3."""
    layers = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3)), min_size=1, max_size=4))
    count = sum(rows * columns for rows, columns in layers)
    few = st.sampled_from([0.0, 1e-45, 1e-38, 0.5, 1.0, 3.0, 3.4e38])
    any_value = st.floats(0, 2.0**100, width=32)
    values = draw(st.lists(few if draw(st.booleans()) else any_value, min_size=count, max_size=count))
    return layers, torch.tensor(values)


@given(rankings(), st.integers(1, 4), st.data())
@settings(max_examples=150)
@example(([(3, 1)], torch.tensor([1.0, 1.0, 1.0])), 3, None)
def test_ranking_of_any_scores(case, ranks, data):
    layers, scores = case
    modules = [nn.Linear(columns, rows) for rows, columns in layers]
    grids = [grid_of("1x1", module) for module in modules]
    sizes = [grid.units for grid in grids]
    middle = 1 if data is None else data.draw(st.integers(1, len(layers)))
    groups = [group for group in (range(middle), range(middle, len(layers))) if group]
    counts = [
        2 if data is None else data.draw(st.integers(0, sum(sizes[layer] for layer in group))) for group in groups
    ]
    alone = LocalRanking(scores, sizes)
    expected = alone.prune(groups, counts)
    shaped = [own.view(grid.mask_shape) for own, grid in zip(torch.split(scores, sizes), grids, strict=True)]
    kept = [own.view(grid.mask_shape) for own, grid in zip(torch.split(alone.kept(), sizes), grids, strict=True)]

    def on_rank(rank: int, exchange):
        parts = [Part.of_shard(grid, len(own), rank, ranks) for grid, own in zip(grids, shaped, strict=True)]
        seam = Seam(parts, sizes, exchange, torch.device("cpu"))
        local = torch.cat([rows_of(rank, ranks, own).flatten() for own in shaped])
        ranking = ShardedRanking(local, parts, sizes, exchange, seam)
        assert ranking.prune(groups, counts) == expected
        assert torch.equal(ranking.kept(), torch.cat([rows_of(rank, ranks, own).flatten() for own in kept]))
        return True

    assert all(run_threads(on_rank, ranks))


@pytest.mark.parametrize(
    ("pattern", "module", "ranks", "expected"),
    [
        # first, places, begun_before, filling, shared on each rank
        ("4x1", nn.Linear(2, 8), 2, [(0, 1, 0, (0, 0), ()), (1, 1, 0, (0, 0), ())]),
        ("4x1", nn.Linear(2, 12), 2, [(0, 2, 0, (0, 2), (1,)), (1, 2, 1, (2, 0), (1,))]),
        ("4x1", nn.Linear(2, 4), 3, [(0, 1, 0, (0, 0), (0,)), (0, 1, 1, (0, 0), (0,)), (1, 0, 0, (0, 0), (0,))]),
        ("channelx1", nn.Linear(2, 6), 2, [(0, 1, 0, (0, 0), (0,)), (0, 1, 1, (0, 0), (0,))]),
        ("2:4", Conv1D(3, 8), 3, [(0, 1, 0, (0, 1), (0, 1)), (0, 2, 1, (3, 2), (0, 1)), (1, 1, 1, (2, 0), (0, 1))]),
    ],
)
def test_parts_of_shards(pattern, module, ranks, expected):
    grid = grid_of(pattern, module)
    parts = [Part.of_shard(grid, len(module.weight), rank, ranks) for rank in range(ranks)]
    assert [(part.first, part.places, part.begun_before, part.filling, part.shared) for part in parts] == expected


def test_nothing_is_copied_where_shards_end_between_units():
    grid = grid_of("4x1", nn.Linear(4, 16))
    part = Part.of_shard(grid, 16, 1, 2)
    weight = torch.randn(8, 4)
    mask = torch.rand(part.grid.mask_shape) < 0.5
    expected = weight * mask.repeat_interleave(4, 0)
    address = weight.data_ptr()
    part.apply_(weight, mask)
    assert torch.equal(weight, expected)
    assert weight.data_ptr() == address


@pytest.mark.parametrize("pattern", ["1x6", "2:4"])
def test_units_across_kernel_positions_do_not_lie_along_the_inputs(pattern):
    module = nn.ConvTranspose1d(2 if pattern == "2:4" else 3, 4, 4)
    assert Part.of_shard(grid_of(pattern, module), len(module.weight), 0, 2) is None
