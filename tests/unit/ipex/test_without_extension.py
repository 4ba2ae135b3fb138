"""What is said of ``backend="ipex"`` where the extension is not, and what works without it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import inc_torch
from inc_torch import (
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    mix_precision,
    prepare_compression,
    quantization,
)
from inc_torch.core.errors import ArtifactError, ConfigError, InexactWarning, MissingPackageError
from inc_torch.ipex import _extension, int8_operations, operations_of, ranges_of, read_summary
from inc_torch.ipex._overwriting import keep_apart
from inc_torch.ipex._summary import Grid, LayerCodes, changed
from inc_torch.quantizers import FloatType
from inc_torch.utils.pytorch import load, recover_model_from_json

FILES = Path(__file__).parents[2] / "inc_artifacts" / "mlp_ipex_static"


@pytest.fixture(autouse=True)
def _no_extension(monkeypatch):
    versions = {"torch": torch.__version__, "intel-extension-for-pytorch": None}
    monkeypatch.setattr(_extension, "_versions", lambda: versions)


class Linears(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.act = nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU()
        self.fc2, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.act(self.fc2(self.norm(self.act(self.fc1(x))))))


def expected():
    return load_file(FILES / "expected.safetensors")


def float_model():
    model = Linears()
    stored = {name.removeprefix("float."): value for name, value in expected().items() if name.startswith("float.")}
    model.load_state_dict(stored)
    return model.eval()


class TestErrors:
    def test_configurations_are_built_all_the_same(self):
        config = PostTrainingQuantConfig(backend="ipex")
        assert config.backend == QuantizationAwareTrainingConfig(backend="ipex").backend == "ipex"
        assert MixedPrecisionConfig(backend="ipex", example_inputs=torch.ones(1)).backend == "ipex"
        assert not config.as_graph
        assert config.to_spec().quant.treatment_of("tokens", "Embedding") is FloatType.FLOAT32
        assert PostTrainingQuantConfig().to_spec().quant.treatment_of("tokens", "Embedding") is not FloatType.FLOAT32

    @pytest.mark.parametrize(
        "name", ["PostTrainingQuantConfig", "QuantizationAwareTrainingConfig", "MixedPrecisionConfig"]
    )
    def test_both_versions_and_the_way_out_are_named(self, name):
        model = Linears()
        with pytest.raises(MissingPackageError) as caught:
            if name == "PostTrainingQuantConfig":
                quantization.fit(model, PostTrainingQuantConfig(backend="ipex"), calib_dataloader=[torch.ones(1, 16)])
            elif name == "MixedPrecisionConfig":
                mix_precision.fit(model, MixedPrecisionConfig(backend="ipex"), inplace=True)
            else:
                prepare_compression(model, QuantizationAwareTrainingConfig(backend="ipex"))
        assert str(caught.value) == (
            f"{name}(backend='ipex') needs torch 2.8 and intel-extension-for-pytorch 2.8, its last release: found "
            f"torch {torch.__version__} and no intel-extension-for-pytorch. Install both in an environment of their "
            "own: pip install 'torch==2.8.*' 'intel-extension-for-pytorch==2.8.*' 'numpy<2'. Or leave backend='ipex' "
            "out: the default backend runs int8 and bfloat16 on oneDNN with any torch."
        )
        assert all(type(module).__module__.startswith(("torch.", __name__)) for module in model.modules())

    @pytest.mark.parametrize(
        ("torch_version", "own_version", "fits"),
        [("2.8.0+cu128", "2.8.0+cpu", True), ("2.13.0", "2.8.0", False), ("2.8.0", "2.7.0", False)],
    )
    def test_versions_are_compared(self, monkeypatch, torch_version, own_version, fits):
        versions = {"torch": torch_version, "intel-extension-for-pytorch": own_version}
        monkeypatch.setattr(_extension, "_versions", lambda: versions)
        assert _extension.is_available() is fits

    @pytest.mark.parametrize("approach", ["dynamic", "weight_only"])
    def test_ranges_have_to_be_known_before(self, approach):
        with pytest.raises(ConfigError, match="backend='ipex': expected 'default', as the extension computes with ran"):
            PostTrainingQuantConfig(backend="ipex", approach=approach)

    def test_other_files_are_refused(self, tmp_path):
        path = tmp_path / "best_configure.json"
        path.write_text("[1]")
        with pytest.raises(ArtifactError, match="is no summary of the extension: expected an object with 'q_op_infos'"):
            read_summary(path)
        path.write_text("{")
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_summary(path)


class TestSummaryOfInc:
    def test_operations_have_names_and_kinds(self):
        summary = read_summary(FILES / "best_configure.json")
        found = [(operation.name, operation.kind) for operation in operations_of(summary)]
        assert found == [("fc1", "Linear"), ("act", "ReLU"), ("fc2", "Linear"), ("act", "ReLU"), ("head", "Linear")]
        assert [operation.name for operation in int8_operations(summary)] == ["fc1", "fc2", "head"]

    def test_ranges_are_read(self):
        ranges = ranges_of(read_summary(FILES / "best_configure.json"))
        assert {name: (seen.scale, seen.zero_point) for name, seen in ranges.items()} == {
            "fc1": (0.028660083189606667, 138),
            "fc2": (0.02075747214257717, 47),
            "head": (0.006967078894376755, 0),
        }
        assert len(ranges["head"].weight_scale or ()) == 4

    @pytest.mark.parametrize("way", ["directory", "json"])
    def test_model_is_recovered_without_the_program(self, way, tmp_path):
        shutil.copy(FILES / "best_configure.json", tmp_path)  # the program is not needed
        model = float_model()
        path = tmp_path / "best_configure.json"
        recovered = load(tmp_path, model) if way == "directory" else recover_model_from_json(model, path, torch.ones(1))
        assert recovered is model
        assert [row.scheme for row in recovered.report().modules] == ["w8a8-static"] * 3
        assert float(recovered.fc2.input_scale) == pytest.approx(0.02075747214257717)
        reference, given = expected(), expected()["input"]
        # INC ran it in bfloat16 between the layers: eight bits of a value below one half.
        assert (recovered(given) - reference["int8_output"].float()).abs().max() < 0.005
        assert 0.001 < (recovered(given) - float_model()(given)).abs().max() < 0.01

    def test_codes_are_those_of_the_summary(self):
        model = load(FILES, float_model())
        ranges = ranges_of(read_summary(FILES / "best_configure.json"))
        scale = torch.tensor(ranges["fc1"].weight_scale)
        assert torch.equal(model.fc1.weight_scale, scale)
        assert torch.equal(
            model.fc1.qweight, (float_model().fc1.weight / scale[:, None]).round().clamp(-128, 127).to(torch.int8)
        )

    def test_other_models_are_refused(self):
        with pytest.raises(ArtifactError, match="has an int8 layer 'fc1', and Sequential has no such layer"):
            load(FILES, nn.Sequential(nn.Linear(16, 32)))


class TestChanges:
    def summary(self):
        return read_summary(FILES / "best_configure.json")

    def test_layers_that_are_not_named_go_to_float(self):
        codes = LayerCodes(Grid(0.5, 7), torch.full((32,), 0.25))
        made = changed(self.summary(), {"fc1": codes}, {})
        assert [operation.name for operation in int8_operations(made)] == ["fc1"]
        entry = made[" "]["q_op_infos"]["0"]
        assert (entry["input_tensor_infos"][0]["scale"], entry["input_tensor_infos"][0]["zero_point"]) == ([0.5], [7])
        assert entry["weight_tensor_infos"][0]["scale"] == [0.25] * 32
        assert made[" "]["q_op_infos"]["4"]["weight_tensor_infos"][0]["inf_dtype"] == "torch.float32"

    def test_codes_of_a_pool_are_read_by_its_own_grid(self):
        """INC writes another scale for what reads them, and gets wrong results."""
        summary = pooled()
        codes = LayerCodes(Grid(0.5, 7), torch.ones(4))
        made = changed(summary, {"fc": codes}, {(" ", "0"): {0: Grid(0.1, 3), 2: Grid(0.5, 7)}})
        entries = made[" "]["q_op_infos"]
        assert entries["0"]["output_tensor_infos"][0]["scale"] == [0.1]
        assert entries["2"]["input_tensor_infos"][0]["scale"] == [0.1]
        assert entries["2"]["input_tensor_infos"][0]["zero_point"] == [3]
        in_float = changed(summary, {"fc": codes}, {})[" "]["q_op_infos"]
        assert in_float["2"]["input_tensor_infos"][0]["scale"] == [0.5]

    @pytest.mark.parametrize(("other", "is_int8"), [(0, False), (5, True)])
    def test_addition_that_would_be_written_over_stays_in_float(self, other, is_int8):
        """Fused to a layer, it may not read what the layer reads: the kernel writes its sums there."""
        summary = pooled()
        entries = summary[" "]["q_op_infos"]
        layer, added = entries["2"], entries["0"]
        layer["input_tensor_infos"][0]["id"], layer["output_tensor_infos"][0]["id"] = 0, 4
        fused = {
            **added["input_tensor_infos"][0],
            "id": 4,
            "inf_dtype": "torch.float32",
            "force_dtype": "torch.float32",
        }
        added |= {"op_type": "<method 'add' of 'torch._C.TensorBase' objects>", "op_type_is_module": False, "fqn": ""}
        added["input_tensor_infos"] = [fused, {**added["input_tensor_infos"][0], "id": other}]
        summary[" "]["q_op_infos"] = {"0": layer, "1": added}
        codes = LayerCodes(Grid(0.5, 7), torch.ones(4))
        made = changed(summary, {"fc": codes}, {(" ", "1"): {other: Grid(0.1, 3)}})
        assert ([operation.name for operation in int8_operations(made)] == ["fc", "/add.0"]) is is_int8

    def test_addresses_are_left_out(self):
        assert " at 0x" not in json.dumps(changed(pooled(), {}, {}))


def pooled():
    """A pool, a change of shape and a linear layer, as the extension writes them."""

    def tensor(number, kind="torch.quint8"):
        return {
            "id": number,
            "orig_dtype": "torch.float32",
            "inf_dtype": kind,
            "force_dtype": kind,
            "scale": [9.0],
            "zero_point": [9],
        }

    def entry(kind, is_module, name, reads, writes, weights=()):
        return {
            "op_type": kind,
            "op_type_is_module": is_module,
            "fqn": name,
            "input_tensor_infos": [tensor(reads)],
            "output_tensor_infos": [tensor(writes, "torch.float32")],
            "weight_tensor_infos": [*weights],
        }

    weight = {"orig_dtype": "torch.float32", "inf_dtype": "torch.qint8", "scale": [1.0] * 4, "zero_point": [0] * 4}
    return {
        " ": {
            "q_op_infos": {
                "0": entry("<class 'torch.nn.modules.pooling.AdaptiveAvgPool2d'>", True, "mean", 0, 1),
                "1": entry("<built-in method flatten of type object at 0x7f01>", False, "", 1, 2),
                "2": entry("<class 'torch.nn.modules.linear.Linear'>", True, "fc", 2, 3, [weight]),
            },
            "nonq_op_infos": {},
            "layer_output_infos": [],
        }
    }


class Sums(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.kind = kind

    def forward(self, x):
        y = torch.tanh(self.first(x))
        match self.kind:
            case "right":
                return self.second(y) + y
            case "left":
                return y + self.second(y)
            case "in place":
                return self.second(y).add_(y.view(y.shape))
            case "normalized":
                return self.norm(self.second(y * 2)) + y
            case "another":
                return self.second(y) + x
        return self.second(y) * y


@pytest.mark.parametrize(
    ("kind", "copies"), [("right", 1), ("left", 1), ("in place", 1), ("normalized", 0), ("another", 0), ("product", 0)]
)
def test_convolution_reads_a_copy_of_what_is_added_to_its_result(kind, copies):
    torch.manual_seed(0)
    model, given = Sums(kind).eval(), torch.randn(1, 2, 4, 4)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.jit.freeze(torch.jit.trace(model, given))
        keep_apart(program.graph)
        assert torch.allclose(program(given), model(given), atol=1e-6)
    assert len(program.graph.findAllNodes("aten::clone")) == copies


def test_in_training_the_backend_of_mixed_precision_has_no_effect():
    with pytest.warns(
        InexactWarning, match=r"without effect here: backend \(the extension runs finished models; give it"
    ):
        prepare_compression(Linears(), MixedPrecisionConfig(backend="ipex"))


@pytest.mark.parametrize("example", [None, {"args": [], "kwargs": {}}])
def test_what_computed_in_bfloat16_on_the_extension_is_loaded_without_it(example, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()).eval()
    made = mix_precision.fit(model)
    made.save(tmp_path)
    path = tmp_path / "compression.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ipex": {"example": example}}))
    with pytest.warns(InexactWarning, match="its int8 and bfloat16 layers run on the default backend"):
        loaded = inc_torch.load(tmp_path, nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()))
    given = torch.randn(1, 3, 8, 8)
    with torch.no_grad():  # where convolutions also do what follows them
        assert torch.equal(loaded(given), made(given))


def test_what_the_extension_ran_is_loaded_without_it(tmp_path):
    model = float_model()
    batches = [torch.randn(4, 16) for _ in range(3)]
    int8 = quantization.fit(model, PostTrainingQuantConfig(graph="off"), calib_dataloader=batches)
    int8.save(tmp_path)
    path = tmp_path / "compression.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "ipex": {"example": {"args": [], "kwargs": {}}}}))
    with pytest.warns(InexactWarning, match="was saved with backend='ipex', and the extension is not here"):
        loaded = inc_torch.load(tmp_path, Linears())
    assert torch.equal(loaded(batches[0]), int8(batches[0]))
