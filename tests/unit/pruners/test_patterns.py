"""Names of patterns, and closed forms of what they prune."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inc_torch.core.errors import ConfigError
from inc_torch.pruners import Limits, MatrixView, Pruner, parse_pattern
from inc_torch.pruners.patterns.block import Block
from inc_torch.pruners.patterns.n_in_m import NInM
from tests.unit.pruners.make import spec_of, stack


def masked(weight: list, pattern: str, target: float, **options: object) -> list:
    """The weight of a Linear after one magnitude pruning."""
    values = torch.tensor(weight, dtype=torch.float32)
    linear = nn.Linear(values.shape[1], values.shape[0], bias=False)
    linear.weight.data.copy_(values)
    Pruner(spec_of(pattern, target=target, **options), stack(linear)).begin_step(0)
    return linear.weight.tolist()


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("4x1", Block(4, 1)),
        ("1x1", Block(1, 1)),
        ("16x16", Block(16, 16)),
        ("channelx2", Block(None, 2)),
        ("2xchannel", Block(2, None)),
        ("tile_pattern_4x1", Block(4, 1)),
        ("2:4", NInM(2, 4)),
        ("tile_pattern_1:4", NInM(1, 4)),
        ("4:8", NInM(4, 8)),
    ],
)
def test_names(text, pattern):
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("channelxchannel", ["'channelxchannel'", "would prune whole layers", "number on one side"]),
        ("0x1", ["'0x1'", "empty block", "1 or more"]),
        ("4x0", ["'4x0'", "empty block"]),
        ("0:4", ["'0:4'", "0 < N < M"]),
        ("4:4", ["'4:4'", "0 < N < M"]),
        ("5:4", ["'5:4'", "0 < N < M"]),
        ("4x1x2", ["Unknown pruning pattern '4x1x2'", "Did you mean '4x1'?", "NxM", "N:M"]),
        ("axb", ["Unknown pruning pattern 'axb'", "NxM", "N:M"]),
        ("2in4", ["Unknown pruning pattern '2in4'", "N:M"]),
        ("-1x4", ["Unknown pruning pattern '-1x4'"]),
        ("4 x 1", ["Unknown pruning pattern '4 x 1'"]),
        ("", ["Unknown pruning pattern ''"]),
        ("x", ["Unknown pruning pattern 'x'"]),
    ],
)
def test_wrong_names_say_what_is_wrong(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_pattern(text)
    for word in words:
        assert word in str(caught.value)


def test_densities():
    assert [parse_pattern(text).density for text in ("4x1", "channelx1", "2:4", "1:4", "3:4")] == [
        1,
        1,
        0.5,
        0.25,
        0.75,
    ]


def test_four_by_one_takes_columns_of_four():
    weight = [[1, 8], [2, 7], [3, 6], [4, 5]]
    assert masked(weight, "4x1", 0.5) == [[0, 8], [0, 7], [0, 6], [0, 5]]


def test_one_by_two_takes_neighbouring_inputs():
    assert masked([[1, 1, 5, 0, 3, 4], [9, 9, 9, 9, 9, 9]], "1x2", 1 / 3) == [[0, 0, 0, 0, 3, 4], [9] * 6]


def test_channel_forms():
    weight = [[1, 8, 3], [1, 1, 9]]
    assert masked(weight, "channelx1", 1 / 3) == [[0, 8, 3], [0, 1, 9]]  # an input
    assert masked(weight, "1xchannel", 0.5) == [[1, 8, 3], [0, 0, 0]]  # an output; means 4 and 11 / 3


def test_reductions_differ():
    weight = [[4, 4, 0, 7], [6, 1, 3, 3]]
    # Columns of two: means 5, 2.5, 1.5, 5; greatest 6, 4, 3, 7.
    assert masked(weight, "2x1", 0.75, reduction="mean") == [[0, 0, 0, 7], [0, 0, 0, 3]]
    assert masked(weight, "2x1", 0.75, reduction="max") == [[0, 0, 0, 7], [0, 0, 0, 3]]
    weight = [[4, 5], [4, 1]]
    assert masked(weight, "2x1", 0.5, reduction="mean") == [[4, 0], [4, 0]]
    assert masked(weight, "2x1", 0.5, reduction="max") == [[0, 5], [0, 1]]
    # Sums count where blocks differ in size: one pruner over columns of 2 and of 4.
    small, large = nn.Linear(2, 2, bias=False), nn.Linear(2, 4, bias=False)
    small.weight.data.fill_(3)
    large.weight.data.fill_(2)
    for reduction, gone in (("mean", large), ("sum", small)):
        model = stack(small, large)
        pruner = Pruner(spec_of("channelx1", reduction=reduction, limits=Limits(0.0, 1.0)), model)
        pruner.begin_step(0)
        assert not pruner.masks["0" if gone is small else "1"].any()
        small.weight.data.fill_(3)
        large.weight.data.fill_(2)


@pytest.mark.parametrize(("text", "pruned", "group"), [("1:4", 1, 4), ("2:4", 2, 4), ("3:4", 3, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("kind", ["constant", "few-values", "zeros"])
def test_n_in_m_takes_exactly_n_whatever_ties(text, pruned, group, kind):
    weight = {
        "constant": torch.ones(6, 16),
        "few-values": torch.randint(-1, 2, (6, 16)).float(),
        "zeros": torch.zeros(6, 16),
    }[kind]
    linear = nn.Linear(16, 6, bias=False)
    linear.weight.data.copy_(weight)
    pruner = Pruner(spec_of(text, target=pruned / group), stack(linear))
    pruner.begin_step(0)
    groups = pruner.masks["0"].view(-1, group)
    assert (groups.sum(-1) == group - pruned).all()
    assert pruner.sparsity == pruned / group
    if kind == "constant":
        assert not groups[:, :pruned].any(), "the first of equal ones go"


def test_n_in_m_below_its_ceiling_takes_the_cheapest_groups():
    weight = [[3, 1, 2, 4, 9, 9, 8, 8], [1, 1, 1, 1, 5, 6, 7, 0]]
    # Group scores (means of what would go): .75, 4, .5, 1.25.
    assert masked(weight, "2:4", 0.25) == [[3, 0, 0, 4, 9, 9, 8, 8], [0, 0, 1, 1, 5, 6, 7, 0]]


def test_n_in_m_locks_only_zeros_that_are_there():
    weight = torch.tensor([[0.0, 1, 0, 2], [0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 0, 0]])
    grid = parse_pattern("2:4").grid(MatrixView.of(nn.Linear(4, 4), weight.shape), "mean")
    locked = grid.zeros_of(weight)
    assert grid.expand(locked).tolist() == [
        [False, True, False, True],
        [True, True, True, True],  # one zero makes no 2:4 group
        [False, False, False, True],
        [False, False, False, False],
    ]
    assert grid.pruned_units(locked) == 3


def test_groups_cross_kernel_positions():
    conv = nn.Conv2d(3, 1, 2, bias=False)
    conv.weight.data.copy_(torch.arange(1.0, 13).view(1, 2, 2, 3).permute(0, 3, 1, 2))
    Pruner(spec_of("2:4"), stack(conv)).begin_step(0)
    in_order = conv.weight.permute(0, 2, 3, 1).flatten().tolist()
    assert in_order == [0, 0, 3, 4, 0, 0, 7, 8, 0, 0, 11, 12]


def test_blocks_cross_kernel_positions():
    conv = nn.Conv2d(3, 1, 2, bias=False)
    conv.weight.data.copy_(torch.arange(1.0, 13).view(1, 2, 2, 3).permute(0, 3, 1, 2))
    Pruner(spec_of("1x4", target=1 / 3), stack(conv)).begin_step(0)
    assert conv.weight.permute(0, 2, 3, 1).flatten().tolist() == [0, 0, 0, 0, *range(5, 13)]
