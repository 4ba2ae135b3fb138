"""What every pruning pattern must do, on every kind of layer, checked against plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from inc_torch.pruners import PATTERNS, MatrixView, parse_pattern
from tests.unit.pruners.vectors import Conv1D

TEXTS = {
    "NxM": ["1x1", "4x1", "1x4", "2x2", "4x3", "channelx1", "1xchannel", "channelx2", "2xchannel", "1x8"],
    "N:M": ["2:4", "1:4", "3:4", "4:8", "1:2"],
    "channel": ["channel"],
    "mha": ["mha"],
}
LAYERS = {
    "linear": nn.Linear(24, 8, bias=False),
    "conv1d": nn.Conv1d(8, 4, 3, bias=False),
    "conv2d": nn.Conv2d(4, 8, (2, 3), bias=False),
    "conv2d-odd-channels": nn.Conv2d(3, 8, (2, 4), bias=False),
    "conv3d": nn.Conv3d(4, 8, (1, 2, 2), bias=False),
    "grouped": nn.Conv2d(16, 8, (1, 3), groups=4, bias=False),
    "depthwise": nn.Conv2d(8, 8, (2, 4), groups=8, bias=False),
    "transposed1d": nn.ConvTranspose1d(8, 4, 3, bias=False),
    "transposed2d": nn.ConvTranspose2d(4, 8, (2, 3), bias=False),
    "hf-conv1d": Conv1D(8, 24),
    "channels-last": nn.Conv2d(4, 8, (2, 3), bias=False).to(memory_format=torch.channels_last),
}
CASES = [(text, layer) for texts in TEXTS.values() for text in texts for layer in LAYERS]


def lay(text: str, layer: str, reduction: str = "mean"):
    module = LAYERS[layer]
    return parse_pattern(text).grid(MatrixView.of(module, module.weight.shape), reduction)


def zeros_of(grid, weight: torch.Tensor) -> torch.Tensor:
    return grid.zeros_of(grid.reduce((weight != 0).float()))


FITTING = [(text, layer) for text, layer in CASES if not isinstance(lay(text, layer), str)]


def tied_weight(layer: str) -> torch.Tensor:
    """Nonzero small integers, laid out in memory like the layer's own weight."""
    weight = LAYERS[layer].weight.detach().clone(memory_format=torch.preserve_format)
    values = torch.randint(1, 4, weight.shape) * (1 - 2 * torch.randint(0, 2, weight.shape))
    return weight.copy_(values)


def element_groups(text: str, layer: str) -> list[list[tuple[int, ...]]]:
    """The indices into the weight of every unit, by loops that know nothing of views."""
    shape = LAYERS[layer].weight.shape
    turned = layer in ("transposed1d", "transposed2d", "hf-conv1d")
    outputs, inputs = (shape[1], shape[0]) if turned else (shape[0], shape[1])
    kernel = list(itertools.product(*map(range, shape[2:])))
    matrix = [
        [((i, o) if turned else (o, i)) + position for position in kernel for i in range(inputs)]
        for o in range(outputs)
    ]
    if text == "channel":
        return [[row[column] for row in matrix for column in range(i, len(row), inputs)] for i in range(inputs)]
    if ":" in text:
        rows, columns = 1, int(text.split(":")[1])
    else:
        first, second = text.split("x")
        rows = outputs if first == "channel" else int(first)
        columns = inputs if second == "channel" else int(second)
    width = len(matrix[0])
    return [
        [matrix[row][column] for row in range(top, top + rows) for column in range(left, left + columns)]
        for top in range(0, outputs, rows)
        for left in range(0, width, columns)
    ]


def test_every_pattern_is_tried():
    assert set(TEXTS) == set(PATTERNS.names())
    for name, texts in TEXTS.items():
        for text in texts:
            assert isinstance(parse_pattern(text), PATTERNS.get(name))


def test_most_cases_fit():
    assert len(FITTING) > 0.7 * len(CASES)
    assert not any(
        text == "mha" for text, _ in FITTING
    )  # no single weight has heads, see tests/unit/pruners/test_heads


@pytest.mark.parametrize(("text", "layer"), FITTING)
def test_masks_prune_whole_units_and_exactly_those_asked_for(text, layer):
    grid, weight = lay(text, layer), tied_weight(layer)
    groups = element_groups(text, layer)
    assert grid.units == len(groups)
    keep = torch.rand(grid.units) < 0.5
    scores = grid.reduce(weight)
    assert scores.shape == grid.score_shape
    mask = grid.mask(scores, keep)
    assert mask.dtype == torch.bool
    assert tuple(mask.shape) == grid.mask_shape
    assert grid.pruned_units(mask) == int((~keep).sum())
    wide = grid.expand(mask)
    assert wide.shape == weight.shape
    assert wide.dtype == torch.bool
    pattern = parse_pattern(text)
    bits, magnitudes = wide.numpy(), weight.abs().numpy()
    for kept, indices in zip(keep.tolist(), groups, strict=True):
        values = [bool(bits[index]) for index in indices]
        pruned = 0 if kept else round(pattern.density * len(indices))
        assert values.count(False) == pruned
        # Of a pruned group the least important go, the first in order of equal ones.
        order = sorted(range(len(indices)), key=lambda place: (magnitudes[indices[place]], place))
        assert [values[place] for place in order] == [False] * pruned + [True] * (len(indices) - pruned)


@pytest.mark.parametrize(("text", "layer"), FITTING)
def test_zeros_round_trip(text, layer):
    grid, weight = lay(text, layer), tied_weight(layer)
    scores = grid.reduce(weight)
    mask = grid.mask(scores, torch.rand(grid.units) < 0.5)
    assert torch.equal(grid.reduce(grid.expand(mask).float()) != 0, mask)
    assert torch.equal(zeros_of(grid, weight * grid.expand(mask)), mask)
    assert zeros_of(grid, weight).all()
    assert grid.pruned_units(zeros_of(grid, torch.zeros_like(weight))) == grid.units


@pytest.mark.parametrize(("text", "layer"), FITTING)
def test_applies_in_place_in_every_dtype(text, layer):
    grid = lay(text, layer)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        weight = tied_weight(layer).to(dtype)
        mask = grid.mask(grid.reduce(weight.float()), torch.rand(grid.units) < 0.5)
        masked, saved = weight.clone(memory_format=torch.preserve_format), mask.clone()
        address, strides = masked.data_ptr(), masked.stride()
        grid.apply_(masked, mask)
        assert (masked.data_ptr(), masked.stride()) == (address, strides)
        assert torch.equal(masked, torch.where(grid.expand(mask), weight, torch.zeros((), dtype=dtype)))
        assert torch.equal(mask, saved)


@pytest.mark.parametrize(("text", "layer"), FITTING)
def test_unit_scores_equal_plain_loops(text, layer):
    weight = torch.randn(LAYERS[layer].weight.shape)
    before = weight.clone()
    density = parse_pattern(text).density
    magnitudes = weight.abs().numpy()
    groups = [sorted(float(magnitudes[index]) for index in indices) for indices in element_groups(text, layer)]
    expected = {"mean": [], "sum": [], "max": []}
    for values in groups:
        pruned = values[: round(density * len(values))]
        expected["mean"].append(math.fsum(pruned) / len(values))
        expected["sum"].append(math.fsum(pruned))
        expected["max"].append(max(pruned))
    for reduction, values in expected.items():
        grid = lay(text, layer, reduction)
        scores = grid.reduce(weight)
        stored = scores.clone()
        units = grid.unit_scores(scores)
        assert torch.equal(weight, before)
        assert torch.equal(scores, stored)
        assert units.shape == (grid.units,)
        torch.testing.assert_close(units, torch.tensor(values))


@pytest.mark.parametrize(
    ("text", "module", "sizes"),
    [
        ("4x1", nn.Linear(8, 6), ("6x8", "4x1")),
        ("1x5", nn.Linear(8, 6), ("6x8", "1x5")),
        ("16x1", nn.Linear(8, 6), ("6x8", "16x1")),
        ("3xchannel", nn.Conv2d(4, 8, 3), ("8x36", "3x4")),
        ("channelx5", nn.Conv1d(4, 8, 3), ("8x12", "8x5")),
        ("4x1", nn.ConvTranspose2d(8, 6, 3), ("6x72", "4x1")),
        ("4x1", Conv1D(6, 8), ("6x8", "4x1")),
        ("2:4", nn.Linear(6, 8), ("6", "4")),
        ("2:4", nn.Conv2d(3, 8, 3), ("27", "4")),
    ],
)
def test_shapes_that_do_not_divide_give_a_reason_with_the_sizes(text, module, sizes):
    reason = parse_pattern(text).grid(MatrixView.of(module, module.weight.shape), "mean")
    assert isinstance(reason, str)
    for size in sizes:
        assert size in reason.split() or f"{size} " in reason + " "


@pytest.mark.parametrize("text", list(itertools.chain(*TEXTS.values())))
def test_equal_texts_give_equal_patterns(text):
    assert parse_pattern(text) == parse_pattern(f"tile_pattern_{text}")
    assert hash(parse_pattern(text)) == hash(parse_pattern(text))
    assert 0 < parse_pattern(text).density <= 1
