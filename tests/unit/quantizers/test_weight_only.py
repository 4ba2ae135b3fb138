"""Weights of a few bits: rounding, packing, and linear layers that hold them."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import inc_torch.quantizers._weight_only_linear as linear_module
from inc_torch import kernels
from inc_torch.core.errors import ArtifactError, ConfigError, ModelError
from inc_torch.core.report import CompressionReport
from inc_torch.quantizers import (
    FloatType,
    QuantRule,
    QuantSpec,
    WeightOnlyLinear,
    WeightOnlyScheme,
    computing_by,
    describe_int8,
    int8_kernels,
    prepare_fake_quant,
    quantize_weights,
    rebuild_int8,
)
from inc_torch.quantizers._weight_only import (
    RoundedWeight,
    codes_in_word,
    decoded,
    pack,
    round_to_nearest,
    rounded_values,
    search_clip,
    unpack,
)
from tests.unit.kernels.needed import needs_processor

_FILE = Path(__file__).parents[2] / "vectors" / "quantization.json"
VECTORS = json.loads(_FILE.read_text(encoding="utf-8"))["weight_only"]
WEIGHT = torch.tensor(VECTORS["W"])
CODES = {"fp4": "fp4_e2m1_bnb"}
"""INC's second name of a table."""


def run_name(run):
    return "-".join(map(str, run["args"].values()))


def random_weight(rows=6, columns=19):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def linear(rows=6, columns=19, **options):
    torch.manual_seed(0)
    return nn.Linear(columns, rows, **options)


def quantized(module, *scheme, **fields):
    quantize_weights(module, QuantSpec(WeightOnlyScheme(*scheme, **fields)))
    return module


# ------------------------------------------------------------------------------ what INC was seen to do


@pytest.mark.parametrize("run", VECTORS["rtn"], ids=run_name)
def test_codes_scales_and_zero_points_are_those_of_inc(run):
    arguments, integers = run["args"], run["int"]
    scheme = WeightOnlyScheme(
        arguments["num_bits"],
        arguments["group_size"],
        symmetric=arguments["scheme"] == "sym",
        full_range=arguments.get("full_range", False),
        codes=CODES.get(arguments.get("data_type"), "int"),
    )
    codes, scales, zero_points = round_to_nearest(WEIGHT, scheme, arguments.get("quantile", 1.0))
    assert codes.tolist() == integers["int"]
    assert scales.tolist() == integers["scale"]
    assert (zero_points if zero_points is None else zero_points.tolist()) == integers["zp"]
    assert rounded_values(RoundedWeight(codes, scales, zero_points), scheme).tolist() == run["qdq"]


def test_the_runs_of_inc_include_one_with_codes_from_a_table():
    assert [run["args"]["data_type"] for run in VECTORS["rtn"] if "data_type" in run["args"]] == ["fp4"]


@pytest.mark.parametrize(("name", "symmetric"), [("sym4", True), ("asym4", False)])
def test_the_clip_ratio_is_that_of_inc(name, symmetric):
    assert search_clip(WEIGHT, WeightOnlyScheme(symmetric=symmetric)) == VECTORS["search_clip"][name]


@pytest.mark.parametrize("symmetry", ["sym", "asym"])
def test_packed_layers_are_those_of_inc(symmetry):
    expected = VECTORS[f"pack/optimum=False/{symmetry}"]
    layer = nn.Linear(8, 2)
    with torch.no_grad():
        layer.weight.copy_(WEIGHT)
        layer.bias.copy_(torch.tensor([0.5, -0.5]))
    quantized(layer, 4, 4, symmetric=symmetry == "sym")
    state = layer.state_dict()
    assert state.keys() == expected["state"].keys()
    for leaf, tensor in expected["state"].items():
        assert (str(state[leaf].dtype), state[leaf].tolist()) == (tensor["dtype"], tensor["val"])
    assert layer.weight.tolist() == expected["recovered"]


# ------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_on_the_grid_are_exact(bits):
    top = 2 ** (bits - 1) - 1
    codes = torch.arange(-top, top + 1).repeat(2, 1)
    scale = torch.tensor([[0.25], [2.0]])
    found = round_to_nearest(codes * scale, WeightOnlyScheme(bits, -1))
    assert torch.equal(found.codes, codes.to(torch.int8))
    assert torch.equal(found.scales, scale)
    levels = torch.arange(2**bits).repeat(2, 1)
    zero_points = torch.tensor([[1], [2**bits - 1]])
    shifted = round_to_nearest((levels - zero_points) * scale, WeightOnlyScheme(bits, -1, symmetric=False))
    assert torch.equal(shifted.codes, levels.to(torch.uint8))
    assert torch.equal(shifted.scales, scale)
    assert torch.equal(shifted.zero_points, zero_points.to(torch.uint8))


def test_the_full_range_is_turned_to_where_the_greatest_magnitude_is():
    weight = torch.tensor([[8.0, -1.0], [-8.0, 1.0], [8.0, 8.0]])
    codes, scales, _ = round_to_nearest(weight, WeightOnlyScheme(full_range=True))
    assert scales.tolist() == [[-1.0], [1.0], [-1.0]]
    assert codes.tolist() == [[-8, 1], [-8, 1], [-8, -8]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_groups_without_a_weight_are_zero(symmetric, value):
    weight = torch.tensor([[value, value, 3.0, -3.0]])
    rounded = round_to_nearest(weight, WeightOnlyScheme(group_size=2, symmetric=symmetric))
    assert rounded.scales[0, 0] == pytest.approx(1 / 7 if symmetric else 2 / 15)
    assert decoded(*rounded, 2)[0, :2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_last_group_is_rounded_as_if_it_stood_alone(symmetric):
    weight, scheme = random_weight(), WeightOnlyScheme(3, 8, symmetric=symmetric)
    whole = round_to_nearest(weight, scheme)
    parts = [round_to_nearest(part, scheme) for part in weight.split(8, dim=1)]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in parts], 1))
    assert torch.equal(whole.scales, torch.cat([part.scales for part in parts], 1))


def test_a_group_longer_than_a_row_is_the_row():
    weight = random_weight()
    one, other = (round_to_nearest(weight, WeightOnlyScheme(group_size=size)) for size in (-1, 32))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scales, other.scales)


@pytest.mark.parametrize("symmetric", [True, False])
def test_no_weight_is_off_by_more_than_half_a_step_but_for_the_ends(symmetric):
    weight, scheme = random_weight(8, 64), WeightOnlyScheme(4, 16, symmetric=symmetric)
    rounded = round_to_nearest(weight, scheme)
    steps = rounded.scales.repeat_interleave(16, 1) * (0.5 if symmetric else 1.0)
    assert ((decoded(*rounded, 16) - weight).abs() <= steps + 1e-6).all()


def test_the_clip_search_makes_the_error_less():
    weight = random_weight(4, 64)
    weight[0, 0] = 6.0
    scheme = WeightOnlyScheme(group_size=-1)
    errors = {
        ratio: (decoded(*round_to_nearest(weight, scheme, ratio), -1) - weight).square().mean().item()
        for ratio in (1.0, search_clip(weight, scheme))
    }
    assert len(errors) == 2
    assert min(errors, key=errors.__getitem__) < 1.0


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_packing_is_undone_by_unpacking(bits, signed):
    low = -(2 ** (bits - 1)) if signed else 0
    codes = torch.randint(low, low + 2**bits, (3, 37), generator=torch.Generator().manual_seed(bits))
    words = pack(codes, bits)
    assert words.shape == (3, -(-37 // codes_in_word(bits)))
    assert torch.equal(unpack(words, bits, 37, signed=signed), codes.to(torch.int32))


def test_words_begin_with_the_first_code_in_the_lowest_bits():
    assert pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, -8, 9]]), 4).tolist() == [[0x87654321 - 2**32, 9]]
    assert pack(torch.tensor([[7] * 10 + [5]]), 3).tolist() == [[2**30 - 1, 5]]


# ------------------------------------------------------------------------------ layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scheme", [(4, 8), (3, -1), (8, 1), (2, 7, False)])
@pytest.mark.parametrize("shape", [(19,), (2, 19), (2, 3, 1, 19), (0, 19)])
def test_a_layer_multiplies_with_the_rounded_weight(scheme, shape, bias):
    layer = linear(bias=bias)
    rounded = decoded(*round_to_nearest(layer.weight, WeightOnlyScheme(*scheme)), scheme[1])
    inputs = torch.randn(shape)
    expected = nn.functional.linear(inputs, rounded, layer.bias)
    torch.testing.assert_close(quantized(layer, *scheme)(inputs), expected)
    assert isinstance(layer, WeightOnlyLinear)
    assert not layer.training
    assert torch.equal(layer.weight, rounded)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_large_weight_is_unpacked_in_pieces(compiled, monkeypatch):
    layer = quantized(linear(), 4, 8, symmetric=False)
    inputs = torch.randn(40, 19)
    expected = layer(inputs)
    monkeypatch.setattr(linear_module, "_PIECE", 4 * 19)
    taken = []
    unpacked = WeightOnlyLinear._floats

    def floats(self, part, *rest):
        taken.append(part)
        return unpacked(self, part, *rest)

    monkeypatch.setattr(WeightOnlyLinear, "_floats", floats)
    with computing_by("inc_torch" if compiled else "reference"):
        torch.testing.assert_close(layer(inputs), expected)
    assert taken == [slice(0, 4), slice(4, 6)]


@pytest.mark.filterwarnings("default")  # torch.compile trips over deprecations of torch's own
def test_it_is_compiled_as_one_graph(monkeypatch):
    layer = quantized(linear(), 3, 5, symmetric=False)
    inputs = torch.randn(4, 19)
    expected = layer(inputs)
    monkeypatch.setattr(linear_module, "_PIECE", 1)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(inputs), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_what_comes_out_has_the_dtype_of_the_input(dtype):
    layer = quantized(linear())
    scales = layer.scales.clone()
    inputs = torch.randn(4, 19)
    expected = layer(inputs)
    layer.to(dtype)
    found = layer(inputs.to(dtype))
    assert found.dtype == layer.weight.dtype == dtype
    assert torch.equal(layer.scales, scales)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_autocast_chooses_the_dtype():
    layer = quantized(linear())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(4, 19)).dtype == torch.bfloat16


def test_integers_are_refused_as_by_a_float_layer():
    with pytest.raises(RuntimeError, match="same dtype"):
        quantized(linear())(torch.ones(2, 19, dtype=torch.int64))


def test_gradients_reach_the_input():
    layer = quantized(linear())
    inputs = torch.randn(3, 19, requires_grad=True)
    layer(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(3, -1))


@pytest.mark.parametrize("path", ["inc_torch", "torch", "reference"])
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", [(4, 32), (3, -1, False), (8, -1), (5, 16, False)])
def test_all_ways_to_multiply_give_the_same(scheme, dtype, tokens, path):
    layer = quantized(linear(48, 96), *scheme)
    layer.register_buffer("input_factor", torch.rand(96) + 0.5)
    inputs = torch.randn(96, tokens).t().to(dtype)  # no dense rows
    exact = (inputs.double() * layer.input_factor) @ layer.weight.double().T + layer.bias
    limit = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype] * exact.abs().max()
    with computing_by(path):
        output = layer(inputs)
    assert output.dtype == dtype
    assert (output - exact).abs().max() <= limit


@pytest.mark.parametrize("path", [pytest.param("inc_torch", marks=needs_processor), "torch", "reference"])
def test_products_follow_what_becomes_of_the_layer(path):
    layer, other = quantized(linear(16, 32)), quantized(linear(16, 32))
    inputs = torch.randn(2, 32).bfloat16()
    with torch.no_grad(), computing_by(path):
        before = layer(inputs)
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(2)
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer(inputs), 2 * before, rtol=0.02, atol=0.02)
        layer.scales.mul_(0.5)  # in place
        layer.bias.mul_(0.5)
        torch.testing.assert_close(layer(inputs), before, rtol=0.02, atol=0.02)
        layer.qweight.bitwise_not_()  # of two's complement: -1 - code
        other.qweight.bitwise_not_()
        other.scales.mul_(0.5)
        other.bias.mul_(0.5)
        torch.testing.assert_close(layer(inputs), other(inputs), rtol=0.02, atol=0.02)


def test_torch_multiplies_codes_with_zero_points_precisely():
    """Offsets of zero points are small numbers, or bfloat16 would lose them."""
    layer = quantized(linear(48, 96), 2, -1, symmetric=False)
    inputs = torch.randn(4, 96).bfloat16()
    exact = inputs.float() @ layer.weight.T + layer.bias
    with computing_by("torch"):
        assert (layer(inputs) - exact).norm() < 5e-3 * exact.norm()


@needs_processor
def test_compiled_code_follows_what_becomes_of_the_layer():
    layer, other = quantized(linear()), quantized(linear())
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(2)
    inputs = torch.randn(2, 19)
    before = layer(inputs)
    assert "_products" in layer.__dict__
    assert "_products" not in copy.deepcopy(layer).__dict__
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(inputs), 2 * before)
    layer.scales.mul_(0.5)  # in place
    layer.bias.mul_(0.5)
    torch.testing.assert_close(layer(inputs), before)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(inputs), before)
    torch.testing.assert_close(layer.bfloat16()(inputs.bfloat16()).float(), before, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("scheme", "native"), [((4, 32), True), ((2, -1), True), ((8, -1), True), ((8, 32), False)])
def test_torch_multiplies_few_rows_of_bfloat16_where_it_can(scheme, native):
    layer = quantized(linear(48, 96), *scheme)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    products = layer._products_for(torch.randn(1, 96))
    with computing_by("torch"), Watch():
        assert (products.times(torch.randn(4, 96).bfloat16(), torch.bfloat16) is not None) == native
        assert products.times(torch.randn(5, 96).bfloat16(), torch.bfloat16) is None
        assert products.times(torch.randn(1, 96), torch.float32) is None
    assert any("pack_mm" in name for name in seen) == native


@needs_processor
def test_who_looks_at_operators_sees_those_of_torch():
    layer = quantized(linear())
    inputs = torch.randn(2, 19)
    expected = layer(inputs)
    with FlopCounterMode(display=False) as counter:
        layer(inputs)
    assert counter.get_total_flops() == 2 * 2 * 19 * 6
    torch.testing.assert_close(torch.func.vmap(layer)(inputs), expected)
    inputs.requires_grad_()
    layer(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(2, -1))


def test_the_float_weight_is_gone_and_a_copy_computes_the_same(monkeypatch):
    layer = quantized(linear())
    assert not list(layer.parameters())
    assert {name: str(tensor.dtype) for name, tensor in layer.state_dict().items()} == {
        "qweight": "torch.int32",
        "scales": "torch.float32",
        "bias": "torch.float32",
    }
    inputs = torch.randn(2, 19)
    assert torch.equal(copy.deepcopy(layer)(inputs), layer(inputs))
    assert repr(layer) == "WeightOnlyLinear((6, 19), scheme='w4-g32-sym')"
    if kernels.available():
        assert int8_kernels(layer) == {"": "inc_torch"}
    monkeypatch.setattr(kernels, "available", lambda: False)
    monkeypatch.setattr(kernels, "reason", lambda: "it rains")
    assert int8_kernels(layer) == {"": "float: it rains"}


def test_the_fused_transformer_layer_takes_the_rounded_weights():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    inputs = torch.randn(2, 5, 16)
    expected = encoder(inputs)
    quantized(encoder, 8, -1)
    assert type(encoder.layers[0].linear1) is WeightOnlyLinear
    with torch.no_grad():
        torch.testing.assert_close(encoder(inputs), expected, rtol=0.05, atol=0.05)


# ------------------------------------------------------------------------------ models


def mixed():
    return nn.Sequential(nn.Linear(19, 6), nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 3, 1), nn.Flatten(), nn.Linear(9, 4))


def test_only_linear_layers_are_quantized_and_the_rest_has_a_reason():
    model = mixed()
    decisions = quantize_weights(model, QuantSpec(WeightOnlyScheme(bits=5)))
    assert {name: made.scheme for name, made in decisions.items()} == {"0": "w5-g32-sym", "2": None, "4": "w5-g32-sym"}
    assert decisions["2"].reason == "weights alone are quantized in linear layers only"
    assert decisions["2"].float_type is FloatType.FLOAT32
    assert [type(module).__name__ for module in model[::2]] == ["WeightOnlyLinear", "Conv1d", "WeightOnlyLinear"]


def test_rules_choose_by_name_and_type():
    rules = (
        QuantRule("type", "Linear", {"bits": 8, "symmetric": False}),
        QuantRule("name", "4", FloatType.FLOAT32),
    )
    decisions = quantize_weights(mixed(), QuantSpec(WeightOnlyScheme(), rules))
    assert decisions["0"].scheme == "w8-g32-asym"
    assert decisions["4"] == (None, "left in float by the configuration", FloatType.FLOAT32)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ConfigError, match=r"leave all of Conv1d in float: \(root\): weights alone are quantized in li"):
        quantize_weights(nn.Conv1d(2, 3, 1), QuantSpec(WeightOnlyScheme()))


@pytest.mark.parametrize("again", [quantize_weights, prepare_fake_quant])
def test_a_second_quantization_is_refused(again):
    model = quantized(mixed())
    with pytest.raises(ModelError, match="Module '0' is already converted to int4"):
        again(model, QuantSpec(WeightOnlyScheme()))


def test_the_report_counts_the_codes_and_not_the_words():
    model = nn.Sequential(nn.Linear(12, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(48.0).view(4, 12) - 24)
        model[1].weight.copy_(torch.tensor([[3.0, 0.0, 0.0, 1.0], [0.0, -3.0, 2.0, 1.0]]))
    rules = (QuantRule("name", "1", {"bits": 3, "symmetric": False, "group_size": 3}),)
    quantize_weights(model, QuantSpec(WeightOnlyScheme(), rules))
    report = CompressionReport.measure(model)
    rows = {row.name: (row.shape, row.bits, row.zeros) for row in report.modules}
    assert rows["1"] == ((2, 4), 3, 3)
    assert rows["0"][:2] == ((4, 12), 4)
    assert rows["0"][2] == int((model[0].weight == 0).sum())
    scales = 4 + 2 * 2
    assert report.other_parameters == scales
    words = 4 * 2 + 2 + 2  # of both weights, and of the zero points of the second
    assert report.size_bytes == 4 * (scales + words)


@pytest.mark.parametrize("scheme", [(4, 8), (3, -1, False)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_description_rebuilds_the_shapes(scheme, device):
    model = quantized(mixed(), *scheme)
    description = json.loads(json.dumps(describe_int8(model)))
    name = "w4-g8-sym" if scheme[0] == 4 else "w3-per-row-asym"
    assert description["0"] == {
        "kind": "weight_only_linear",
        "scheme": name,
        "shape": [6, 19],
        "bias": True,
        "smoothed": False,
    }
    empty = mixed().to(device)
    rebuild_int8(empty, description)
    empty.load_state_dict(model.state_dict(), assign=device == "meta")
    inputs = torch.randn(3, 19)
    assert torch.equal(empty.eval()(inputs), model(inputs))
    assert describe_int8(empty) == description


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "w4-g0-sym"}, "unknown scheme 'w4-g0-sym'"),
        ({"scheme": "w9-g32-sym"}, "unknown scheme"),
        ({"scheme": "w8a8-static"}, "kind 'weight_only_linear', to which the scheme 'w8a8-static' does not belong"),
        ({"kind": "linear"}, "of kind 'linear', to which the scheme 'w4-g32-sym' does not belong"),
        ({"shape": [6, 24]}, r"has shape \[6, 24\] and bias=True, but the model has shape \[6, 19\]"),
    ],
)
def test_a_damaged_description_is_refused(change, message):
    description = describe_int8(quantized(mixed()))
    with pytest.raises(ArtifactError, match=message):
        rebuild_int8(mixed(), {"0": description["0"] | change})
