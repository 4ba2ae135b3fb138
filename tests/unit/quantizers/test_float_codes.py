"""Weights as codes of four bits from a table of floats."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from inc_torch.core.report import CompressionReport
from inc_torch.quantizers import (
    GptqSettings,
    QuantSpec,
    WeightOnlyLinear,
    WeightOnlyScheme,
    describe_int8,
    quantize_weights,
    rebuild_int8,
    round_by_gptq,
    round_to_nearest,
    rounded_values,
)
from inc_torch.quantizers._float_codes import TABLES, float_codes, float_values, greatest_value
from inc_torch.quantizers._weight_only import search_clip

KINDS = tuple(TABLES)


def layer(kind, group_size=8, **options):
    torch.manual_seed(0)
    made = nn.Linear(19, 6)
    quantize_weights(made, QuantSpec(WeightOnlyScheme(group_size=group_size, codes=kind, **options)))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_each_table_is_ordered_and_gives_zero_the_code_zero(kind):
    numbers, codes = list(TABLES[kind]), list(TABLES[kind].values())
    assert numbers == sorted(numbers)
    assert TABLES[kind][0.0] == 0
    assert len({code % 16 for code in codes}) == len(codes)
    assert -8 <= min(codes) <= max(codes) <= 7
    assert numbers[-1] == -numbers[0] == greatest_value(kind)


def test_the_fp4_tables_are_symmetric_and_double_from_one_to_the_other():
    bnb, e2m1 = (list(TABLES[kind]) for kind in ("fp4_e2m1_bnb", "fp4_e2m1"))
    assert bnb == [-number for number in reversed(bnb)]
    assert [number for number in bnb if number >= 0] == [0, 0.0625, 2, 3, 4, 6, 8, 12]
    assert [number for number in e2m1 if number >= 0] == [0, 0.0625, 1, 1.5, 2, 3, 4, 6]


def test_nf4_lies_at_the_quantiles_of_a_normal_distribution():
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083
    above = normal.icdf(torch.linspace(offset, 0.5, 9))[:-1]
    below = -normal.icdf(torch.linspace(offset, 0.5, 8))[:-1]
    expected = torch.cat([below, torch.zeros(1), above]).sort().values
    torch.testing.assert_close(torch.tensor(list(TABLES["nf4"])), expected / expected.max(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_the_table_are_exact_and_midpoints_go_down(kind):
    numbers = torch.tensor(list(TABLES[kind]))
    assert torch.equal(float_values(float_codes(numbers, kind), kind), numbers)
    midpoints = (numbers[1:] + numbers[:-1]) / 2
    assert torch.equal(float_values(float_codes(midpoints, kind), kind), numbers[:-1])
    above = torch.nextafter(midpoints, torch.tensor(99.0))
    assert torch.equal(float_values(float_codes(above, kind), kind), numbers[1:])
    assert float_values(float_codes(torch.tensor([-99.0, 99.0]), kind), kind).tolist() == [numbers[0], numbers[-1]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_brings_the_greatest_magnitude_to_the_end_of_the_table(kind):
    weight = torch.tensor([[0.5, -3.0, 0.0, 0.0, 0.0, 1e-40]])
    rounded = round_to_nearest(weight, WeightOnlyScheme(group_size=3, codes=kind))
    assert rounded.zero_points is None
    assert rounded.codes.dtype == torch.int8
    assert rounded.scales.tolist() == (torch.tensor([[3.0, 1.0]]) / greatest_value(kind)).tolist()
    values = rounded_values(rounded, WeightOnlyScheme(group_size=3, codes=kind))
    assert values[0, 1] == -3.0
    assert values[0, 2:].tolist() == [0.0] * 4
    half = round_to_nearest(weight, WeightOnlyScheme(group_size=3, codes=kind), 0.5)
    assert torch.equal(half.scales, rounded.scales * torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_clip_search_makes_the_error_less(kind):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    scheme = WeightOnlyScheme(group_size=-1, codes=kind)
    errors = {
        ratio: (rounded_values(round_to_nearest(weight, scheme, ratio), scheme) - weight).square().mean().item()
        for ratio in (1.0, search_clip(weight, scheme))
    }
    assert len(errors) == 2
    assert min(errors, key=errors.__getitem__) < 1.0


def test_bits_symmetry_and_range_are_those_of_the_table_whatever_is_asked():
    asked = WeightOnlyScheme(8, 16, symmetric=False, codes="nf4", full_range=True)
    assert asked == WeightOnlyScheme(4, 16, codes="nf4")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_size", [8, -1])
def test_a_layer_multiplies_with_the_numbers_of_its_codes(kind, group_size):
    torch.manual_seed(0)
    weight = nn.Linear(19, 6).weight
    scheme = WeightOnlyScheme(group_size=group_size, codes=kind)
    expected = rounded_values(round_to_nearest(weight, scheme), scheme)
    made = layer(kind, group_size)
    inputs = torch.randn(5, 19)
    assert isinstance(made, WeightOnlyLinear)
    assert torch.equal(made.weight, expected)
    torch.testing.assert_close(made(inputs), nn.functional.linear(inputs, expected, made.bias))
    assert made.state_dict().keys() == {"qweight", "scales", "bias"}
    assert made.scheme == f"{kind}-{'per-row' if group_size == -1 else 'g8'}"
    empty = nn.Linear(19, 6)
    rebuild_int8(empty, describe_int8(made))
    empty.load_state_dict(made.state_dict())
    assert torch.equal(copy.deepcopy(empty)(inputs), made(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_counts_four_bits_and_the_zeros(kind):
    model = nn.Sequential(nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.linspace(-1, 1, 32).view(4, 8))
        model[0].weight[:, 2:4] = 0
    quantize_weights(model, QuantSpec(WeightOnlyScheme(group_size=4, codes=kind)))
    (row,) = CompressionReport.measure(model).modules
    assert (row.bits, row.zeros) == (4, 8)
    assert int((model[0].weight == 0).sum()) == 8


@pytest.mark.filterwarnings("default")  # torch.compile trips over deprecations of torch's own
def test_it_is_compiled_as_one_graph():
    made, inputs = layer("nf4"), torch.randn(4, 19)
    expected = made(inputs)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(made, backend="aot_eager", fullgraph=True)(inputs), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gptq_rounds_to_the_table_too_and_changes_outputs_less(kind):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 16, generator=generator)
    weight[:, 3] = 0.0
    mixed = torch.randn(16, 16, generator=generator)
    inputs = torch.randn(256, 16, generator=generator) @ mixed
    scheme = WeightOnlyScheme(group_size=8, codes=kind)
    made = round_by_gptq(weight, inputs.T @ inputs, scheme, GptqSettings())
    assert torch.equal(rounded_values(made.rounded, scheme), made.values)
    assert not made.values[:, 3].any()
    nearest = rounded_values(round_to_nearest(weight, scheme), scheme)
    errors = [((values - weight) @ inputs.T).square().mean() for values in (made.values, nearest)]
    assert errors[0] < 0.8 * errors[1]
