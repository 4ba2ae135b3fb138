"""`export_compressed_model`: the packed layouts of INC, compared with what INC packs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import inc_torch
from inc_torch import PostTrainingQuantConfig, quantization
from inc_torch.config import Torch2ONNXConfig
from inc_torch.core.errors import ArtifactError, ConfigError, InexactWarning, ModelError
from inc_torch.export import attached_report, export_compressed_model
from inc_torch.export.onnx import export_onnx
from inc_torch.quantizers import QuantSpec, WeightOnlyScheme, describe_int8, quantize_weights, rebuild_int8
from inc_torch.quantizers._weight_only import codes_in_word, pack, unpack
from inc_torch.utils import load_huggingface

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text(encoding="utf-8"))
PACKED = {key: value for key, value in VECTORS["weight_only"].items() if key.startswith("pack/")}
CONTAINERS = (torch.int8, torch.int16, torch.int32, torch.int64)
OTHERS = {"compression_dtype": CONTAINERS, "compression_dim": (0, 1), "scale_dtype": (torch.float32, torch.float16)}


def net(outputs=12, inputs=20):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 5, bias=False))


def fitted(weight, model=None, **options):
    rules = {".*": {"weight": weight}}
    config = PostTrainingQuantConfig(approach="weight_only", op_type_dict=rules, **options)
    return quantization.fit(model or net(), config)


def of_vectors(symmetry):
    model = nn.Sequential(nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(VECTORS["weight_only"]["W"]))
        model[0].bias.copy_(torch.tensor([0.5, -0.5]))
    return fitted({"bits": 4, "group_size": 4, "scheme": symmetry}, model)


# ------------------------------------------------------------------------------ what INC was seen to do


@pytest.mark.parametrize("name", PACKED)
def test_buffers_and_values_are_those_of_inc(name):
    optimum, symmetry = name.removeprefix("pack/optimum=").split("/")
    packed = of_vectors(symmetry).export_compressed_model(use_optimum_format=optimum == "True")
    expected, state = PACKED[name], packed[0].state_dict()
    assert type(packed[0]).__name__ == expected["type"]
    assert state.keys() == expected["state"].keys()
    for leaf, tensor in expected["state"].items():
        assert str(state[leaf].dtype) == tensor["dtype"]
        assert list(state[leaf].shape) == tensor["shape"]
        assert state[leaf].tolist() == tensor["val"]
    weight = packed[0].weight.half().float() if optimum == "True" else packed[0].weight  # INC's is float16 there
    assert weight.tolist() == expected["recovered"]


def test_there_are_four_vectors():
    assert len(PACKED) == 4


# ------------------------------------------------------------------------------ an independent reading


def codes_by_numpy(words, bits, container, columns):
    """The codes of each row of words, lowest bits first, from 0."""
    unsigned = np.asarray(words).astype(np.int64).astype(f"u{container.itemsize}").astype(object)
    count = container.itemsize * 8 // bits
    taken = [
        [(int(word) >> (bits * place)) & (2**bits - 1) for word in row for place in range(count)] for row in unsigned
    ]
    return np.array(taken, dtype=np.int64)[:, :columns]


@pytest.mark.parametrize("container", CONTAINERS, ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_words_of_any_container_hold_whole_codes_from_the_lowest_bits_on(bits, container):
    low = -(2 ** (bits - 1))
    codes = torch.randint(low, -low, (3, 37), generator=torch.Generator().manual_seed(bits))
    words = pack(codes, bits, container)
    assert words.dtype == container
    assert words.shape == (3, -(-37 // codes_in_word(bits, container)))
    assert np.array_equal(codes_by_numpy(words.tolist(), bits, container, 37), codes.numpy() % 2**bits)
    assert torch.equal(unpack(words, bits, 37, signed=True), codes.to(torch.int32))


def unpacked_by_numpy(state, layer, arguments, bits, group, symmetric):
    outputs, inputs = layer.weight_shape
    groups = -(-inputs // group)
    container = arguments.get("compression_dtype", torch.int32)
    lies_along_outputs = arguments.get("compression_dim", 1) == 0
    optimum = arguments.get("use_optimum_format", True)
    words = state["qweight"].numpy()
    if optimum:
        codes = codes_by_numpy(words.T.tolist(), bits, container, inputs)
        zeros = (codes_by_numpy(state["qzeros"].tolist(), bits, container, outputs).T + 1) % 2**bits
        scales = state["scales"].float().numpy().T
    else:
        along = codes_by_numpy(words.T.tolist(), bits, container, outputs).T
        codes = along if lies_along_outputs else codes_by_numpy(words.tolist(), bits, container, inputs)
        zeros = np.zeros((outputs, groups), dtype=np.int64)
        if symmetric:
            codes = np.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)
        elif lies_along_outputs:
            zeros = codes_by_numpy(state["qzeros"].numpy().T.tolist(), bits, container, outputs).T
        else:
            zeros = codes_by_numpy(state["qzeros"].tolist(), bits, container, groups)
        scales = state["scales"].float().numpy()
    group_of = state["g_idx"].numpy() if "g_idx" in state else np.arange(inputs) // group
    return (codes - zeros[:, group_of]).astype(np.float32) * scales[:, group_of]


@pytest.mark.parametrize("symmetry", ["sym", "asym"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"use_optimum_format": False, "compression_dim": 0},
        {"use_optimum_format": False, "compression_dtype": torch.int8, "scale_dtype": torch.bfloat16},
        {"use_optimum_format": False, "compression_dtype": torch.int64},
        {"use_optimum_format": False, "compression_dtype": torch.int16, "compression_dim": 0},
    ],
    ids=str,
)
def test_words_decode_to_the_weight_of_the_layer_and_of_the_model(arguments, bits, symmetry):
    model = fitted({"bits": bits, "group_size": 8, "scheme": symmetry})
    packed = model.export_compressed_model(**arguments)
    for place in (0, 2):
        layer, state = packed[place], packed[place].state_dict()
        found = unpacked_by_numpy(state, layer, arguments, bits, 8, symmetry == "sym")
        assert torch.equal(torch.from_numpy(found), layer.weight)
        scale = model[place].scales.to(layer.layout.scale_dtype).float().repeat_interleave(8, 1)
        steps = model[place].signed_codes()
        assert torch.equal(layer.signed_codes(), steps)
        assert torch.equal(layer.weight, steps * scale[:, : steps.shape[1]])
    inputs = torch.randn(3, 20)
    torch.testing.assert_close(packed(inputs), model(inputs), rtol=0.03, atol=0.03)
    expected = nn.functional.linear(inputs, packed[0].weight, packed[0].bias.float()).relu() @ packed[2].weight.T
    torch.testing.assert_close(packed(inputs), expected)


def test_inputs_in_another_order_keep_their_groups():
    layer = nn.Linear(8, 8)
    quantize_weights(layer, QuantSpec(WeightOnlyScheme(group_size=4)))
    layer.g_idx = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0], dtype=torch.int32)
    for optimum in (True, False):
        packed = export_compressed_model(layer, use_optimum_format=optimum)
        assert packed.g_idx.tolist() == layer.g_idx.tolist()
        assert torch.allclose(packed.weight, layer.weight, rtol=1e-3)
    packed = export_compressed_model(layer)
    found = unpacked_by_numpy(packed.state_dict(), packed, {}, 4, 4, symmetric=True)
    assert torch.equal(torch.from_numpy(found), packed.weight)


# ------------------------------------------------------------------------------ the copy


def test_the_model_stays_as_it_is_and_shares_what_did_not_change():
    model = fitted({}, nn.Sequential(nn.Embedding(9, 20), net()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = model.export_compressed_model()
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    assert type(model[1][0]) is type(packed[1][0])
    assert packed is not model
    assert packed[0].weight is model[0].weight
    same = model.export_compressed_model(use_optimum_format=False)
    assert same[1][0].qweight is model[1][0].qweight
    assert same[1][0] is not model[1][0]


def test_layouts_are_taken_back_without_loss():
    model = fitted({"bits": 4, "group_size": 8, "scheme": "asym"})
    there = export_compressed_model(model, use_optimum_format=False, compression_dtype=torch.int8, compression_dim=0)
    back = export_compressed_model(there, use_optimum_format=False)
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())
    symmetric = fitted({"bits": 8, "group_size": 8})
    back = symmetric.export_compressed_model().export_compressed_model(use_optimum_format=False)
    assert torch.equal(back[0].qweight, symmetric[0].qweight)
    assert back[0].qzeros is None


def test_zero_points_of_zero_are_stored_as_the_greatest_code():
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    nn.init.constant_(model[0].weight, 0.5)
    packed = fitted({"scheme": "asym"}, model).export_compressed_model()
    assert packed[0].qzeros.tolist() == [[-1]]  # fifteen, eight times
    assert packed[0].weight.unique().tolist() == [pytest.approx(0.5, rel=1e-3)]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"use_optimum_format": False, "compression_dtype": torch.int8, "compression_dim": 0}],
    ids=["optimum", "int8"],
)
@pytest.mark.parametrize("scheme", ["sym", "asym"])
def test_what_is_packed_is_saved_loaded_and_reported(arguments, scheme, tmp_path):
    model = fitted({"bits": 4, "group_size": 8, "scheme": scheme})
    packed = model.export_compressed_model(**arguments)
    packed.save(tmp_path)
    again = inc_torch.load(tmp_path, model=net())
    inputs = torch.randn(3, 20)
    assert torch.equal(again(inputs), packed(inputs))
    assert again[0].layout == packed[0].layout
    report = packed.report()
    assert attached_report(again) == report
    assert [(row.bits, row.shape, row.zeros) for row in report.modules] == [
        (row.bits, row.shape, row.zeros) for row in model.report().modules
    ]
    stored = sum(tensor.numel() * tensor.element_size() for tensor in packed.state_dict().values())
    assert report.size_bytes == stored
    floats = sum(tensor.numel() for tensor in packed.state_dict().values() if tensor.is_floating_point())
    assert report.other_parameters == floats


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "autogptq"}, "has the layout 'autogptq': expected one such as 'int32-dim1-float32'"),
        ({"layout": "int32-dim2-float32"}, "has the layout 'int32-dim2-float32': expected one such as"),
        ({"layout": 3}, "has the layout 3: expected one such as"),
        ({"scheme": "w3-g8-sym"}, "has the layout 'optimum': optimum's layout has codes of 2, 4 or 8 bits, not 3"),
        ({"scheme": "nf4-g8"}, "optimum's layout has no codes of kind 'nf4'"),
    ],
)
def test_a_damaged_description_is_refused(change, message):
    description = describe_int8(fitted({"group_size": 8}).export_compressed_model())
    with pytest.raises(ArtifactError, match=message):
        rebuild_int8(net(), {"0": description["0"] | change})


@pytest.mark.parametrize("arguments", [{}, {"use_optimum_format": False, "compression_dim": 0}], ids=str)
def test_it_is_written_as_onnx(arguments, tmp_path):
    pytest.importorskip("onnxscript")
    packed = fitted({"group_size": 8, "scheme": "asym"}).export_compressed_model(**arguments)
    made = export_onnx(packed, tmp_path / "model.onnx", Torch2ONNXConfig(example_inputs=torch.randn(2, 20)))
    assert made.error < 1e-5


@pytest.mark.filterwarnings("default")  # torch.compile trips over deprecations of torch's own
@pytest.mark.parametrize("optimum", [True, False])
def test_it_is_compiled_as_one_graph(optimum):
    packed = fitted({"group_size": 8}).export_compressed_model(use_optimum_format=optimum)
    inputs = torch.randn(4, 20)
    expected = packed(inputs)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(packed, backend="aot_eager", fullgraph=True)(inputs), expected)


def test_codes_from_a_table_are_packed_in_the_layouts_of_inc(tmp_path):
    model = fitted({"dtype": "nf4", "group_size": 8})
    packed = model.export_compressed_model(use_optimum_format=False, compression_dtype=torch.int16)
    assert torch.equal(packed[0].weight, model[0].weight)
    assert packed[0].qweight.shape == (12, 5)
    packed.save(tmp_path)
    assert torch.equal(inc_torch.load(tmp_path, model=net())[0].weight, model[0].weight)


def test_the_path_of_inc_loads_what_was_saved(tmp_path):
    model = fitted({"group_size": 8})
    model.save(tmp_path)
    packed = load_huggingface.export_compressed_model(net(), tmp_path)
    expected = model.export_compressed_model().state_dict()
    assert packed.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in packed.state_dict().items())
    own = load_huggingface.export_compressed_model(model, use_optimum_format=False, compression_dtype=torch.int16)
    assert own[0].qweight.dtype == torch.int16


def test_another_device_takes_the_copy_alone():
    model = fitted({}, nn.Sequential(nn.Embedding(4, 20), net()))
    packed = model.export_compressed_model(device="meta")
    assert {tensor.device.type for tensor in packed.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"compression_dtype": torch.uint8},
            r"compression_dtype=torch.uint8\): expected one of torch.int8, torch.int16",
        ),
        (
            {"compression_dtype": torch.int8},
            r"compression_dtype=torch.int8\): expected torch.int32, as optimum's layout",
        ),
        ({"compression_dim": 2}, r"compression_dim=2\): expected one of 0, 1"),
        ({"compression_dim": True}, r"compression_dim=True\): expected one of 0, 1"),
        (
            {"compression_dim": 0},
            r"compression_dim=0\): expected 1, as optimum's layout has it. Leave it out, or give use",
        ),
        ({"scale_dtype": torch.float64}, r"scale_dtype=torch.float64\): expected one of torch.float32, torch.float16"),
        ({"scale_dtype": torch.bfloat16}, r"scale_dtype=torch.bfloat16\): expected torch.float16, as optimum's layout"),
        ({"use_optimum_format": "yes"}, r"use_optimum_format='yes'\): expected True or False"),
        ({"device": "tpu9"}, r"device='tpu9'\): expected a device of this machine .*tpu9"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        fitted({}).export_compressed_model(**arguments)


@pytest.mark.parametrize("name", ["qweight_config_path", "gptq_config_path", "enable_full_range"])
def test_arguments_without_effect_are_warned_about(name):
    with pytest.warns(InexactWarning, match=rf"export_compressed_model\({name}=True\) has no effect: "):
        fitted({}).export_compressed_model(**{name: True})


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (
            {"dtype": "nf4"},
            "optimum's layout has no codes of kind 'nf4': quantize it otherwise, or give use_optimum_for",
        ),
        ({"bits": 3}, "optimum's layout has codes of 2, 4 or 8 bits, not 3"),
    ],
)
def test_what_the_layout_has_no_place_for_is_refused_by_name(weight, reason):
    model = fitted({}, op_name_dict={"2": {"weight": weight}})
    with pytest.raises(ModelError, match=f"has no place for '2': {reason}"):
        model.export_compressed_model()
    assert model.export_compressed_model(use_optimum_format=False)[2].layout.name == "int32-dim1-float32"


def test_an_input_factor_is_refused_by_name_in_any_layout():
    model = fitted({})
    model[2].register_buffer("input_factor", torch.ones(12))
    for optimum in (True, False):
        with pytest.raises(ModelError, match="has no place for '2': its inputs are multiplied with a factor"):
            model.export_compressed_model(use_optimum_format=optimum)


@pytest.mark.parametrize(("factor", "leaf"), [(1e8, "scales"), (1e-12, "scales")])
def test_scales_that_float16_cannot_hold_are_refused(factor, leaf):
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(factor)
    small = fitted({}, model)
    with pytest.raises(ModelError, match=f"no place for '2': float16 cannot hold its {leaf}: give use_optimum_format="):
        small.export_compressed_model()
    assert torch.equal(small.export_compressed_model(use_optimum_format=False)[2].weight, small[2].weight)


def test_single_values_that_are_as_good_as_zero_are_no_obstacle():
    model = net()
    with torch.no_grad():
        model[0].weight[3].mul_(1e-12)
        model[0].bias[2] = 1e-20
    packed = fitted({}, model).export_compressed_model()
    assert not packed[0].weight[3].any()
    assert packed[0].weight[4].any()
    with torch.no_grad():
        model[0].bias[2] = 1e9
    with pytest.raises(ModelError, match="no place for '0': float16 cannot hold its bias"):
        fitted({}, model).export_compressed_model()


def test_a_model_without_packed_weights_is_refused():
    with pytest.raises(ModelError, match="was given a Sequential without packed weights: expected a model of"):
        export_compressed_model(net())
