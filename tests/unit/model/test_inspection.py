"""What a directory holds, by its files; and that damage is seen without loading anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from inc_torch import MixedPrecisionConfig, PostTrainingQuantConfig, mix_precision, quantization
from inc_torch.core.errors import ArtifactError
from inc_torch.export import save
from inc_torch.huggingface import OptimizedModel, save_for_huggingface_upstream
from inc_torch.model import inspect_saved

INC = Path(__file__).resolve().parents[2] / "inc_artifacts"
LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def plain(tmp_path):
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    quantization.fit(model, PostTrainingQuantConfig(), calib_dataloader=[torch.ones(2, 64)]).save(tmp_path / "int8")
    return tmp_path / "int8"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Directories of one Llama: in float, with 4 bits, and the same as GPTQ."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **LLAMA)).eval()
    model.save_pretrained(folder / "float")
    rules = {".*": {"weight": {"bits": 4, "group_size": 32, "scheme": "asym"}}}
    fp32 = {"lm_head": {"weight": {"dtype": "fp32"}}}
    config = PostTrainingQuantConfig(approach="weight_only", op_type_dict=rules, op_name_dict=fp32)
    small = quantization.fit(model, config)
    save_for_huggingface_upstream(small, None, folder / "w4")
    save_for_huggingface_upstream(small, None, folder / "gptq", quant_method="gptq")
    save_for_huggingface_upstream(
        quantization.fit(model, PostTrainingQuantConfig(approach="dynamic")), None, folder / "int8"
    )
    return folder


class TestOurs:
    def test_everything_that_is_known(self, plain):
        found = inspect_saved(plain)
        assert (found.kind, found.model_class, found.versions) == ("inc_torch", "Sequential", {"format": "inc_torch/1"})
        assert found.schemes == {"0": "w8a8-static", "2": "w8a8-static"}
        assert found.bytes_by_dtype["I8"] == 64 * 8 + 8 * 2
        assert set(found.files) == {"compression.json", "model.safetensors"}
        assert found.files["model.safetensors"] == (plain / "model.safetensors").stat().st_size
        zeros = sum(row.zeros for row in found.report.modules)
        assert found.sparsity == zeros / 528
        assert found.is_sound
        assert found.opened_by.splitlines()[0] == "import inc_torch"
        plain_values = json.loads(json.dumps(found.to_dict()))
        assert plain_values["checks"][0]["is_right"] is True
        assert "report" not in plain_values

    def test_what_it_says_opens_it(self, plain):
        line = inspect_saved(plain).opened_by.replace("model=...", "model=built")
        names = {"built": nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))}
        exec(line, names)
        assert [type(module).__name__ for module in names["model"]] == ["Int8Linear", "ReLU", "Int8Linear"]

    def test_modules_in_bfloat16(self, tmp_path):
        half = mix_precision.fit(nn.Sequential(nn.Linear(8, 8)).eval(), MixedPrecisionConfig())
        half.save(tmp_path)
        found = inspect_saved(tmp_path)
        assert set(found.schemes.values()) == {"bfloat16"}
        assert found.bytes_by_dtype == {"BF16": 2 * 72}

    def test_changed_and_missing_weights(self, plain):
        flip_last_byte(plain / "model.safetensors")
        found = inspect_saved(plain)
        assert not found.is_sound
        assert found.checks[0].detail.startswith("sha256 '")
        with (plain / "model.safetensors").open("ab") as file:
            file.write(b"x")
        assert inspect_saved(plain).checks[0].detail.startswith("bytes ")
        (plain / "model.safetensors").write_bytes(b"\xff" * 20)
        assert inspect_saved(plain).bytes_by_dtype == {}
        (plain / "model.safetensors").unlink()
        assert inspect_saved(plain).checks[0].detail == "the file is missing"


class TestHub:
    def test_a_compressed_one(self, hub):
        found = inspect_saved(hub / "w4")
        assert (found.kind, found.model_class) == ("Hugging Face, inc_torch", "LlamaForCausalLM")
        assert set(found.schemes.values()) == {"w4-g32-asym"}
        assert len(found.schemes) == 7
        assert found.checks[0].is_right is True
        assert found.checks[0].detail == "CRC-32 of 7 layers as saved"
        assert 0 < found.sparsity < 0.2

    def test_tied_codes_are_checked_where_they_lie(self, hub):
        found = inspect_saved(hub / "int8")
        assert found.is_sound
        assert "lm_head" in found.schemes

    def test_gptq(self, hub):
        found = inspect_saved(hub / "gptq")
        assert found.kind == "Hugging Face, gptq"
        assert found.schemes["model.layers.0.mlp.up_proj"] == "w4-g32-asym"
        assert len(found.schemes) == 7
        assert found.versions["written by"].startswith("inc_torch:")
        assert found.checks[0].is_right is None

    def test_a_float_one(self, hub):
        found = inspect_saved(hub / "float")
        assert (found.kind, found.schemes, found.report, found.sparsity) == ("Hugging Face", {}, None, None)
        assert set(found.bytes_by_dtype) == {"F32"}

    @pytest.mark.parametrize("name", ["float", "w4", "gptq", "int8"])
    def test_what_it_says_opens_it(self, hub, name):
        names = {}
        exec(inspect_saved(hub / name).opened_by, names)
        assert names["OptimizedModel"] is OptimizedModel
        assert type(names["model"]).__name__ == "LlamaForCausalLM"

    def test_changed_codes_and_cut_files(self, hub, tmp_path):
        shutil.copytree(hub / "w4", tmp_path / "w4")
        weights = tmp_path / "w4" / "model.safetensors"
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        tensors["model.layers.0.mlp.up_proj.qweight"][0, 0] += 1
        save_file(tensors, weights, metadata={"format": "pt"})
        found = inspect_saved(tmp_path / "w4")
        assert not found.is_sound
        assert found.checks[0].detail == "1 of 7 layers are not as saved, first 'model.layers.0.mlp.up_proj'"
        weights.write_bytes(weights.read_bytes()[:-8])
        assert "is damaged or cut short" in inspect_saved(tmp_path / "w4").checks[0].detail

    def test_of_a_method_that_others_open(self, hub, tmp_path):
        shutil.copytree(hub / "float", tmp_path / "awq")
        config = json.loads((tmp_path / "awq" / "config.json").read_text())
        (tmp_path / "awq" / "config.json").write_text(
            json.dumps({**config, "quantization_config": {"quant_method": "awq"}})
        )
        found = inspect_saved(tmp_path / "awq")
        assert found.kind == "Hugging Face, awq"
        assert found.opened_by.startswith("from transformers import AutoModel")


class TestIntelNeuralCompressor:
    @pytest.mark.parametrize("name", ["cnn_static", "mlp_dynamic", "mlp_static", "cnn_qat"])
    def test_a_saved_model(self, name):
        found = inspect_saved(INC / name)
        assert found.kind == "Intel Neural Compressor 2.X"
        assert sum(found.bytes_by_dtype.values()) > 0
        assert found.opened_by.startswith("from inc_torch.utils.pytorch import load")
        assert found.checks[0].is_right is None

    def test_a_summary_of_ipex(self):
        assert "backend ipex" in inspect_saved(INC / "mlp_ipex_static").kind


def test_what_is_no_model(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no model that is known: .*does not exist \(it is seen from"):
        inspect_saved(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ArtifactError, match=r"holds no model that is known: expected compression.json of inc_torch"):
        inspect_saved(tmp_path)


def test_a_float_model_that_was_saved(tmp_path):
    save(nn.Linear(4, 2), tmp_path)
    found = inspect_saved(tmp_path)
    assert (found.schemes, found.bytes_by_dtype) == ({}, {"F32": 40})
