"""Export to ONNX: the file computes what the model does, in operators that runtimes fuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from inc_torch import PostTrainingQuantConfig, QuantizationAwareTrainingConfig, prepare_compression
from inc_torch.config import Torch2ONNXConfig
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, MissingPackageError, ModelError
from inc_torch.export.onnx import export_onnx
from inc_torch.inference import optimize_for_inference
from inc_torch.quantization import fit
from inc_torch.quantizers import GivenCodes, QuantScheme, adopt_codes

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.up(self.depthwise(self.relu(self.bn(self.conv(x)))))
        return self.fc(torch.flatten(self.pool(x), 1))


class Tokens(nn.Module):
    """A small transformer block: an embedding, and linear layers on three axes; its forward cannot be traced whole."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(400, 64), nn.LayerNorm(64)
        self.up, self.down, self.head = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 4)

    def forward(self, ids, scale=None):
        hidden = self.table(ids)
        hidden = self.norm(hidden + self.down(torch.nn.functional.gelu(self.up(hidden))))
        return {"logits": self.head(hidden.mean(1))}


IMAGES, IDS = torch.randn(4, 3, 8, 8), torch.randint(40, (4, 6))


def _fitted(model, batch, **options):
    return fit(model.eval(), PostTrainingQuantConfig(**options), calib_dataloader=[batch] * 3)


def _run(path, **inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    return [torch.from_numpy(value) for value in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


def test_a_static_graph_is_fused_and_equal_to_a_step(tmp_path):
    model = _fitted(Convolutions(), (IMAGES, 0))
    with torch.no_grad():
        before = model(IMAGES)
    made = model.export(tmp_path / "model.onnx", Torch2ONNXConfig(example_inputs=IMAGES))
    assert made.inputs == ("x",)
    assert made.operators["QuantizeLinear"] >= 4
    assert made.operators["Conv"] == 2
    assert made.opset_version == 18
    scale = before.abs().max()
    assert made.error <= 0.01 * scale
    others = torch.randn(7, 3, 8, 8)  # another batch size
    (got,) = _run(tmp_path / "model.onnx", x=others)
    with torch.no_grad():
        torch.testing.assert_close(got, model(others), rtol=0, atol=0.02 * float(scale))
        assert torch.equal(model(IMAGES), before)  # nothing has changed in the model
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert b"test_onnx.py" not in (tmp_path / "model.onnx").read_bytes()  # where the code lies is nobody's business


@pytest.mark.parametrize("approach", ["static", "dynamic"])
def test_linear_layers_become_int8_products(tmp_path, approach):
    model = _fitted(Tokens(), {"ids": IDS}, approach=approach)
    config = Torch2ONNXConfig(
        example_inputs={"ids": IDS},
        dynamic_axes={"ids": {0: "batch", 1: "tokens"}},
        output_names=["logits"],
    )
    made = export_onnx(model, tmp_path / "model.onnx", config)
    assert made.outputs == ("logits",)
    assert made.operators["QuantizeLinear" if approach == "static" else "DynamicQuantizeLinear"] >= 3
    assert made.error < 1e-4
    ids = torch.randint(40, (3, 9))
    (got,) = _run(tmp_path / "model.onnx", ids=ids)
    with torch.no_grad():
        torch.testing.assert_close(got, model(ids)["logits"], rtol=1e-3, atol=1e-3)
    size = (tmp_path / "model.onnx").stat().st_size
    export_onnx(Tokens().eval(), tmp_path / "float.onnx", config.replace(dtype="fp32"))
    weights = 400 * 64 + 2 * 64 * 128 + 64 * 4
    assert (tmp_path / "float.onnx").stat().st_size - size > 2 * weights  # of 3 bytes less for each
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 3
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options)
    onnx = pytest.importorskip("onnx")
    fused = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert (
        sum(name in {"MatMulIntegerToFloat", "QGemm", "DynamicQuantizeMatMul", "QLinearMatMul"} for name in fused) >= 2
    )


def test_a_model_of_quantization_aware_training(tmp_path):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    manager = prepare_compression(model, QuantizationAwareTrainingConfig())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    x = torch.randn(32, 8)
    for index in range(4):
        manager.on_step_begin(index)
        manager.on_after_compute_loss(x, model(x), model(x).square().mean()).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
    config = Torch2ONNXConfig(example_inputs=x)
    with pytest.raises(ModelError, match="in the middle of quantization-aware training: call on_train_end"):
        manager.export(tmp_path / "early.onnx", config)
    manager.on_train_end()
    made = manager.export(tmp_path / "model.onnx", config)
    assert made.error <= 0.02 * float(model(x).abs().max())
    assert not (tmp_path / "early.onnx").exists()


def test_fewer_bits_are_clipped(tmp_path):
    model = nn.Sequential(nn.Linear(2, 1))
    codes = GivenCodes(
        torch.tensor([[100, 0]], dtype=torch.int8), torch.ones(1), None, QuantScheme(input_bits=7), (0.1, 0)
    )
    adopt_codes(model, {"0": codes})
    x = torch.tensor([[12.0, 0.0], [20.0, 0.0]])  # 12.7 is the greatest value of seven bits
    assert model(x).flatten().tolist() == pytest.approx([1200, 1270])
    assert export_onnx(model, tmp_path / "model.onnx", Torch2ONNXConfig(example_inputs=x)).error < 1e-2


@pytest.mark.parametrize("scheme", ["sym", "asym"])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, -1), (3, 20)])
def test_weights_alone(tmp_path, scheme, bits, group):
    weight = {"bits": bits, "group_size": group, "scheme": scheme, "algorithm": "RTN"}
    model = _fitted(Tokens(), {"ids": IDS}, approach="weight_only", op_type_dict={".*": {"weight": weight}})
    made = export_onnx(model, tmp_path / "model.onnx", Torch2ONNXConfig(example_inputs={"ids": IDS}))
    assert made.error < 1e-4


@pytest.mark.parametrize(("dtype", "group"), [("nf4", 32), ("fp4", 20), ("fp4_e2m1", -1)])
def test_weights_alone_with_codes_from_a_table(tmp_path, dtype, group):
    weight = {"dtype": dtype, "group_size": group}
    model = _fitted(Tokens(), {"ids": IDS}, approach="weight_only", op_type_dict={".*": {"weight": weight}})
    made = export_onnx(model, tmp_path / "model.onnx", Torch2ONNXConfig(example_inputs={"ids": IDS}))
    assert made.error < 1e-4


def test_modules_in_bfloat16_are_written_in_float(tmp_path):
    rule = {"weight": {"dtype": "bf16"}, "activation": {"dtype": "bf16"}}
    model = _fitted(Tokens(), {"ids": IDS}, op_name_dict={"down": rule})
    with torch.no_grad():
        before = model(IDS)["logits"]
    made = export_onnx(model, tmp_path / "model.onnx", Torch2ONNXConfig(example_inputs={"ids": IDS}))
    assert made.error <= 0.02 * float(before.abs().max())
    assert model.down.weight.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(model(IDS)["logits"], before)


def test_an_optimized_model_is_written_as_it_was(tmp_path):
    model = optimize_for_inference(_fitted(Tokens(), {"ids": IDS}), {"ids": IDS})
    with torch.no_grad():
        before = model(IDS)["logits"]
    made = export_onnx(model, tmp_path / "model.onnx", Torch2ONNXConfig(example_inputs={"ids": IDS}))
    assert made.error <= 0.05 * float(before.abs().max())
    with torch.no_grad():
        assert torch.equal(model(IDS)["logits"], before)


# ---------------------------------------------------------------------------- what is refused


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_what_cannot_be_written_leaves_no_file_and_no_trace(tmp_path):
    x = torch.randn(3, 4)
    model = _fitted(Branching(), (x.abs(), 0))
    before = copy.deepcopy(model.state_dict())
    target = tmp_path / "deep" / "model.onnx"
    with pytest.raises(ModelError, match="Branching cannot be written as ONNX"):
        export_onnx(model, target, Torch2ONNXConfig(example_inputs=x))
    assert list(target.parent.iterdir()) == []
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert model.fc._arithmetic is None
    model(x.abs())


def test_an_older_file_is_not_overwritten_by_half(tmp_path):
    (tmp_path / "model.onnx").write_text("before")
    with pytest.raises(ModelError):
        export_onnx(
            _fitted(Branching(), (torch.ones(2, 4), 0)),
            tmp_path / "model.onnx",
            Torch2ONNXConfig(example_inputs=torch.ones(2, 4)),
        )
    assert (tmp_path / "model.onnx").read_text() == "before"


def test_float_and_int8_are_not_taken_for_each_other(tmp_path):
    config = Torch2ONNXConfig(example_inputs={"ids": IDS})
    with pytest.raises(ConfigError, match="dtype='int8': expected 'fp32', as Tokens has no int8 module"):
        export_onnx(Tokens(), tmp_path / "a.onnx", config)
    with pytest.raises(ConfigError, match="dtype='fp32': expected 'int8', as Tokens has int8 modules"):
        export_onnx(_fitted(Tokens(), {"ids": IDS}), tmp_path / "a.onnx", config.replace(dtype="fp32"))
    with pytest.raises(ConfigError, match="expected a batch to trace the model with"):
        export_onnx(Tokens(), tmp_path / "a.onnx", Torch2ONNXConfig(dtype="fp32"))
    with pytest.raises(ConfigError, match="dynamic_axes names 'idz': expected inputs among 'ids'"):
        export_onnx(Tokens(), tmp_path / "a.onnx", config.replace(dtype="fp32", dynamic_axes={"idz": [0]}))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"Export to ONNX needs the package 'onnx'.*inc_torch\[onnx\]"):
        export_onnx(Tokens(), tmp_path / "a.onnx", Torch2ONNXConfig(dtype="fp32", example_inputs=IDS))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"quant_format": "QLinear"}, ConfigError, r"quant_format='QLinear': expected 'QDQ'\. Runtimes fuse"),
        ({"dtype": "int4"}, ConfigError, "expected one of 'int8', 'fp32'"),
        ({"opset_version": 12}, ConfigError, "opset_version=12: expected a number of 13 or more"),
        ({"opset": 17}, ConfigTypeError, "Did you mean 'opset_version'"),
        ({"weight_type": "U8"}, ConfigError, "expected one of 'S8'"),
        ({"dynamic_axes": {"x": 3}}, ConfigTypeError, r"expected a dict \{axis: name\} or a list of axes"),
    ],
)
def test_wrong_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        Torch2ONNXConfig(**options)


def test_an_older_set_of_operators_is_not_written_in_silence(tmp_path):
    config = Torch2ONNXConfig("fp32", 14, "qdq", example_inputs=torch.ones(2, 4), recipe="QDQ_OP_FP32_BIAS")
    with pytest.warns(InexactWarning) as told:
        made = export_onnx(nn.Linear(4, 2), tmp_path / "model.onnx", config)
    assert made.opset_version == 18
    assert "opset_version=14: the file has 18" in str(told[0].message)
    assert "recipe has no effect" in str(told[1].message)


def test_a_language_model_is_written_without_its_cache_and_with_the_factors_of_awq(tmp_path):
    from tests.support.language_models import BATCHES, llama, rounding

    model = llama()
    with torch.no_grad():
        for name, module in model.named_modules():
            if "norm" in name:
                module.weight[::11] *= 15
    made = fit(model, rounding("AWQ", bits=4), calib_dataloader=BATCHES)
    assert any(getattr(module, "input_factor", None) is not None for module in made.modules())
    ids = BATCHES[0]["input_ids"]
    made.export(tmp_path / "model.onnx", Torch2ONNXConfig(dtype="int8", example_inputs={"input_ids": ids}))
    assert made.config.use_cache
    (found,) = _run(tmp_path / "model.onnx", input_ids=ids)
    torch.testing.assert_close(found, made(ids).logits.detach(), rtol=1e-4, atol=1e-5)
