"""Everything that a module can be compressed to travels through a hub directory."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from inc_torch.core.errors import ArtifactError, InexactWarning
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.export import load, save
from inc_torch.huggingface import OptimizedModel, save_for_huggingface_upstream
from inc_torch.huggingface._float import to_float
from inc_torch.precision import compute_in_bfloat16, describe_bfloat16
from inc_torch.quantizers import (
    FloatType,
    QuantRule,
    QuantScheme,
    QuantSpec,
    convert,
    describe_int8,
    enable_fake_quant,
    prepare_fake_quant,
)
from tests.unit.huggingface.conftest import bert, gpt2, inputs_of, logits

ROOT = Path(__file__).parents[3]
IS_5 = not transformers.__version__.startswith("4.")
LOW = {
    "bert": ["bert.embeddings.word_embeddings", "bert.encoder.layer.0.output.dense", "classifier"],
    "gpt2": ["transformer.wte", "lm_head", "transformer.h.1.mlp.c_fc"],
}
"""What computes in bfloat16: the first Parameter of each model, tied ones, and transformers' Conv1D."""
AUTO = {"bert": transformers.AutoModelForSequenceClassification, "gpt2": transformers.AutoModelForCausalLM}


def mixed(name):
    """Static, dynamic, smoothed and bfloat16 in one model."""
    torch.manual_seed(0)
    model = {"bert": bert, "gpt2": gpt2}[name]()
    dynamic, smoothed = {
        "bert": ("bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.1.intermediate.dense"),
        "gpt2": ("transformer.h.0.mlp.c_fc", "transformer.h.0.attn.c_attn"),
    }[name]
    rules = [QuantRule("name", dynamic, {"dynamic": True})]
    rules += [QuantRule("name", low, FloatType.BFLOAT16) for low in LOW[name]]
    prepare_fake_quant(model, QuantSpec(rules=tuple(rules)))
    model.get_submodule(smoothed).smooth(torch.linspace(0.5, 2, 32))
    enable_fake_quant(model, observe=True)
    with torch.no_grad():
        model.train()(**inputs_of(model))
    convert(model)
    compute_in_bfloat16(model, LOW[name])
    return model.eval()


@pytest.fixture(scope="module")
def models():
    return {name: mixed(name) for name in LOW}


@pytest.fixture(scope="module")
def directories(models, tmp_path_factory):
    made = {}
    for name, model in models.items():
        made[name] = tmp_path_factory.mktemp(name) / "model"
        save_for_huggingface_upstream(model, None, made[name])
    return made


@pytest.fixture(params=sorted(LOW))
def name(request):
    return request.param


@pytest.fixture
def directory(directories, tmp_path):
    return Path(shutil.copytree(directories["bert"], tmp_path / "model"))


def edit(directory, change):
    path = directory / "config.json"
    data = json.loads(path.read_text())
    change(data["quantization_config"])
    path.write_text(json.dumps(data))


# ------------------------------------------------------------------------------ the same numbers


def test_auto_class_gives_bit_equal_logits(name, models, directories):
    model, info = AUTO[name].from_pretrained(directories[name], output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert describe_int8(model) == describe_int8(models[name])
    assert {entry["kind"] for entry in describe_int8(model).values()} == {"linear", "dynamic_linear", "embedding"}
    assert any(entry["smoothed"] for entry in describe_int8(model).values())
    assert sorted(describe_bfloat16(model)) == sorted(LOW[name])
    assert torch.equal(logits(model), logits(models[name]))
    assert model.config.dtype == torch.float32


def test_a_fresh_process_gives_bit_equal_logits(models, directories, tmp_path):
    for name, model in models.items():
        save_file({"logits": logits(model), **inputs_of(model)}, tmp_path / name)
    program = "\n".join(
        [
            "import json, sys, torch; torch.set_num_threads(1)",
            "import inc_torch, transformers",
            "from safetensors.torch import load_file",
            "for task, directory, batch in json.loads(sys.argv[1]):",
            "    batch = load_file(batch); want = batch.pop('logits')",
            "    for options in ({}, {'dtype': 'auto'}, {'device_map': 'cpu'}):",
            "        model = getattr(transformers, task).from_pretrained(directory, **options)",
            "        with torch.no_grad(): got = model(**batch).logits",
            "        assert torch.equal(got, want), (task, options, (got - want).abs().max())",
        ]
    )
    cases = [(AUTO[name].__name__, str(directories[name]), str(tmp_path / name)) for name in models]
    command = [sys.executable, "-c", program, json.dumps(cases)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_tied_bfloat16_weights_are_stored_once_and_tied_again(models, directories):
    assert "lm_head.weight" not in load_file(directories["gpt2"] / "model.safetensors")
    got = OptimizedModel.from_pretrained(directories["gpt2"])
    assert got.lm_head.weight is got.transformer.wte.weight
    assert got.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dtype_changes_the_others_alone(name, models, directories, dtype):
    model = AUTO[name].from_pretrained(directories[name], dtype=dtype)
    exact = models[name].state_dict()
    for module in [*describe_bfloat16(model), *describe_int8(model)]:
        for leaf, tensor in model.get_submodule(module).state_dict().items():
            assert tensor.dtype == exact[f"{module}.{leaf}"].dtype
            assert torch.equal(tensor, exact[f"{module}.{leaf}"])
    assert next(norm.weight.dtype for norm in model.modules() if isinstance(norm, nn.LayerNorm)) == dtype
    got, want = logits(model), logits(models[name])
    assert got.dtype == dtype
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()


def test_what_an_older_transformers_casts_is_read_again(name, models, directories, monkeypatch):
    """Before 5 it cast all floating tensors of a quantized model to the dtype of the model."""
    monkeypatch.setattr(AUTO_QUANTIZER_MAPPING["inc_torch"], "get_new_dtype", cast_to_half)
    model = AUTO[name].from_pretrained(directories[name], dtype=torch.float16)
    assert torch.equal(model.get_submodule(LOW[name][0]).weight, models[name].get_submodule(LOW[name][0]).weight)
    assert describe_bfloat16(model) == describe_bfloat16(models[name])


def cast_to_half(self, converter, param, dtype):
    return torch.float16 if dtype in (torch.float32, torch.bfloat16) else dtype


def test_copies_and_pickles_compute_the_same(name, models, directories):
    model = AUTO[name].from_pretrained(directories[name])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), logits(models[name]))


def test_saved_again(name, models, directories, tmp_path):
    model = AUTO[name].from_pretrained(directories[name])
    save_for_huggingface_upstream(model, None, tmp_path, max_shard_size=8_000)
    again = AUTO[name].from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(models[name]))


def test_the_plain_layout_carries_them_too(name, models, tmp_path):
    save(models[name], tmp_path)
    got = load(tmp_path, model=type(models[name])(copy.deepcopy(models[name].config)))
    assert torch.equal(logits(got), logits(models[name]))


def test_a_model_of_bfloat16_alone(tmp_path):
    model = bert().eval()
    compute_in_bfloat16(model, ["classifier", "bert.encoder.layer.0.output.dense"])
    save_for_huggingface_upstream(model, None, tmp_path)
    got = AUTO["bert"].from_pretrained(tmp_path)
    assert torch.equal(logits(got), logits(model))
    card = (tmp_path / "README.md").read_text()
    assert "- bfloat16\n" in card
    assert "- int8" not in card
    assert "| bfloat16 modules | 2 of " in card
    assert "import inc_torch  #" in card
    assert "then compute as the others do" in card


class Tagger(transformers.PreTrainedModel):
    """A recurrent layer, and an output layer with a bias whose weight is tied."""

    config_class = transformers.BertConfig
    _tied_weights_keys = {"out.weight": "words.weight"} if IS_5 else ["out.weight"]

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(60, 8)
        self.lstm = nn.LSTM(8, 4, batch_first=True, bidirectional=True)
        self.out = nn.Linear(8, 60)
        self.post_init()

    def _init_weights(self, module):
        pass

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return self.out

    def forward(self, input_ids):
        return self.out(self.lstm(self.words(input_ids))[0])


def test_a_recurrent_layer_in_a_hugging_face_model(tmp_path):
    words = torch.tensor([[3, 1, 4, 1, 5]])
    model = Tagger(transformers.BertConfig(hidden_size=8))
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    model.train()(words)
    convert(model)
    compute_in_bfloat16(model, ["lstm"])
    save_for_huggingface_upstream(model, None, tmp_path)
    got = Tagger.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(got(words), model(words))
    row = next(row for row in got.__dict__["_inc_torch_report"].modules if row.name == "lstm")
    assert (row.kind, row.bits, row.scheme) == ("LSTM", 16, "bfloat16")


def test_a_tied_layer_with_a_bias_of_its_own(tmp_path):
    model = Tagger(transformers.BertConfig(hidden_size=8)).eval()
    compute_in_bfloat16(model, ["words", "out"])
    save_for_huggingface_upstream(model, None, tmp_path)
    got = Tagger.from_pretrained(tmp_path)
    assert got.out.weight is got.words.weight
    words = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.equal(got(words), model(words))


# ------------------------------------------------------------------------------ the report


def test_the_report_is_proven_with_its_bits(name, models, directories):
    report = OptimizedModel.from_pretrained(directories[name]).__dict__["_inc_torch_report"]
    assert report == CompressionReport.from_dict(
        json.loads((directories[name] / "compression_report.json").read_text())
    )
    rows = {row.name: row for row in report.modules}
    listed = [low for low in LOW[name] if low in rows]
    assert len(listed) >= 2
    assert {(rows[low].bits, rows[low].scheme) for low in listed} == {(16, "bfloat16")}


def test_what_was_to_compute_in_bfloat16_and_does_not_is_told(tmp_path):
    model = bert()
    model.__dict__["_inc_torch_report"] = CompressionReport.measure(model, [Finding("classifier", scheme="bfloat16")])
    with pytest.warns(InexactWarning, match=r"'classifier' was to be 'bfloat16' and has 32 bits"):
        save_for_huggingface_upstream(model, None, tmp_path)


# ------------------------------------------------------------------------------ damage


def test_a_changed_weight_is_noticed(directory):
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["classifier.weight"].add_(1)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"Bfloat16 module 'classifier'.*got checksum '\w{8}', expected"):
        AUTO["bert"].from_pretrained(directory)


def test_a_missing_weight_is_no_reason_to_make_one_up(directory):
    path = directory / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != "classifier.bias"}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"Bfloat16 module 'classifier'.*the files lack 'bias'"):
        AUTO["bert"].from_pretrained(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["bfloat16"].update(clasifier="Linear"), r"bfloat16 names 'clasifier'.*Did you mean"),
        (lambda config: config["bfloat16"].update(classifier="LSTM"), r"'classifier' as 'LSTM', but .* has a Linear"),
        (lambda config: config["checksums"].pop("classifier"), r"'classifier' .*expected checksum None"),
        (lambda config: config.update(bfloat=config.pop("bfloat16")), r"bfloat={.*Did you mean 'bfloat16'"),
    ],
)
def test_a_damaged_description_is_refused(directory, change, message):
    edit(directory, change)
    with pytest.raises(ArtifactError, match=message):
        AUTO["bert"].from_pretrained(directory)


def test_a_float_head_is_not_tied_to_a_bfloat16_embedding(tmp_path):
    body = transformers.GPT2Model(gpt2().config)
    compute_in_bfloat16(body, ["wte"])
    save_for_huggingface_upstream(body, None, tmp_path)
    with pytest.raises(
        ArtifactError, match=r"'transformer.wte'.* shares 'weight' with 'lm_head'.*name both, or neither"
    ):
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path)


def test_a_directory_from_before_smoothing_and_bfloat16_is_read(int8_directories, int8_models, tmp_path):
    directory = Path(shutil.copytree(int8_directories["bert"], tmp_path / "old"))

    def age(config):
        assert config.pop("bfloat16") == {}
        assert not any(entry.pop("smoothed") for entry in config["modules"].values())

    edit(directory, age)
    assert torch.equal(logits(AUTO["bert"].from_pretrained(directory)), logits(int8_models["bert"]))


# ------------------------------------------------------------------------------ back to float


def test_dequantize_gives_a_float_model_back(name, models, directories):
    model = OptimizedModel.from_pretrained(directories[name])
    model.dequantize()
    assert describe_int8(model) == describe_bfloat16(model) == {}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any("bfloat16" in repr(module) or "scheme" in repr(module) for module in model.modules())
    want = logits(models[name])
    assert (logits(model) - want).abs().max() < 0.1 * want.abs().max()


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "dynamic_linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, groups=2), (3, 6, 5)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3), (3, 6, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(6, 4, 2, groups=2), (3, 6, 3, 3, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(6, 4, 3, stride=2, groups=2), (3, 6, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(6, 4, 3), (3, 6, 5, 5)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(6, 4, 2, groups=2), (3, 6, 3, 3, 3)),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_each_int8_layer_smoothed_and_with_a_corrected_bias_becomes_float(kind):
    build, shape = LAYERS[kind]
    model, values = build(), torch.randn(shape)
    weight, bias = model.weight.clone(), model.bias.clone()
    prepare_fake_quant(model, QuantSpec(QuantScheme(dynamic=kind.startswith("dynamic"))))
    model.smooth(torch.linspace(1, 3, 6))
    model.correct_bias(torch.ones(4))
    enable_fake_quant(model, observe=True)
    model(values)
    convert(model)
    to_float(model, kind)
    assert type(model) is type(build())
    assert vars(model).keys() == vars(build()).keys()
    assert (model.weight - weight).abs().max() < 3 * weight.abs().max() / 254
    assert torch.equal(model.bias, bias + 1)
    assert model(values).shape == build()(values).shape


def test_a_bias_that_quantization_added_stays():
    model = nn.Linear(6, 4, bias=False)
    prepare_fake_quant(model, QuantSpec(QuantScheme(dynamic=True)))
    model.correct_bias(torch.arange(4.0))
    convert(model)
    to_float(model, "dynamic_linear")
    assert model.bias.tolist() == [0, 1, 2, 3]
