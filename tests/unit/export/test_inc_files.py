"""Files that INC 2.6 wrote: the same numbers, and nothing that is in them runs."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from inc_torch import load as load_own
from inc_torch.core.errors import ArtifactError, ModelError
from inc_torch.export import save
from inc_torch.export.inc import load_inc
from inc_torch.export.inc._layers import flat
from inc_torch.quantizers import GivenCodes, Int8DynamicLinear, Int8Linear, QuantScheme, adopt_codes, is_graph
from inc_torch.utils.load_huggingface import OptimizedModel
from inc_torch.utils.pytorch import load

FILES = Path(__file__).parents[2] / "inc_artifacts"


class Convolutions(nn.Module):
    def __init__(self, *, bias=True):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.pool(x), 1))


class Linears(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32)
        self.head, self.act = nn.Linear(32, 4), nn.ReLU()

    def forward(self, x):
        return self.head(self.act(self.fc2(self.norm(self.act(self.fc1(x))))))


def bert():
    config = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    return BertForSequenceClassification(BertConfig(intermediate_size=64, max_position_embeddings=32, **config))


def _expected(name):
    return load_file(FILES / name / "expected.safetensors")


@torch.no_grad()
def _output(model, given):
    if "input" in given:
        return model(given["input"])
    return model(given["input_ids"], attention_mask=torch.ones_like(given["input_ids"])).logits


def _stored(name):
    return torch.load(FILES / name / "best_model.pt", weights_only=True)


# ---------------------------------------------------------------------------- the same numbers


@pytest.mark.filterwarnings("ignore:.*TypedStorage:UserWarning", "ignore:.*quantiz:UserWarning")
@pytest.mark.parametrize(
    ("name", "make", "last"),
    [("cnn_static", Convolutions, "fc"), ("cnn_qat", Convolutions, "fc"), ("mlp_static", Linears, "head")],
)
def test_static_models_answer_as_incs_within_one_step(name, make, last):
    given, stored = _expected(name), _stored(name)
    model = load(FILES / name, make())
    output, step = _output(model, given), stored[f"{last}.scale"]
    assert is_graph(model)
    steps = ((output - given["int8_output"]) / step).round()
    assert steps.abs().max() <= 1
    float_error = (given["float_output"] - given["int8_output"]).abs().mean()
    assert (output - given["int8_output"]).abs().mean() < float_error  # it is not the float model
    packed, bias = stored[f"{last}._packed_params._packed_params"]
    layer = model.get_submodule(last)
    assert torch.equal(layer.qweight, packed.int_repr())
    torch.testing.assert_close(layer.weight_scale, packed.q_per_channel_scales().float())
    assert torch.equal(layer.bias, bias)
    assert not model.training


def test_a_convolution_without_bias_gets_that_of_the_folded_normalization():
    given = _expected("cnn_static")
    model = load(FILES / "cnn_static", Convolutions(bias=False))
    assert isinstance(model.bn1, nn.Identity)
    assert torch.equal(_output(model, given), _output(load(FILES / "cnn_static", Convolutions()), given))


def test_dynamic_models_answer_as_incs_to_the_last_digits():
    given = _expected("mlp_dynamic")
    model = load(FILES / "mlp_dynamic", Linears())
    assert isinstance(model.fc1, Int8DynamicLinear)
    torch.testing.assert_close(_output(model, given), given["int8_output"], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*TypedStorage:UserWarning", "ignore:.*quantiz:UserWarning")
def test_the_directory_for_the_hub(tmp_path):
    given = _expected("bert_hub_static")
    model = OptimizedModel.from_pretrained(FILES / "bert_hub_static")
    output = _output(model, given)
    step = torch.load(FILES / "bert_hub_static" / "pytorch_model.bin", weights_only=True)["classifier.module.scale"]
    steps = ((output - given["int8_output"]) / step).abs()
    assert steps.max() < 1.5  # INC's outputs are rounded to steps, ours are not
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) == 14
    assert model.bert.embeddings.word_embeddings.weight.dtype == torch.float32
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(_output(again, given), output)
    by_hand = load(FILES / "bert_hub_static", bert())
    assert torch.equal(_output(by_hand, given), output)


@pytest.mark.parametrize(("name", "make"), [("cnn_qat", Convolutions), ("mlp_dynamic", Linears)])
def test_it_is_saved_as_ours_and_loaded_again(name, make, tmp_path):
    given, model = _expected(name), load(FILES / name / "best_model.pt", make())
    output = _output(model, given)
    save(model, tmp_path / "ours")
    assert torch.equal(_output(load_own(tmp_path / "ours", make()), given), output)
    assert torch.equal(_output(load(tmp_path / "ours", make()), given), output)
    assert torch.equal(_output(copy.deepcopy(model), given), output)
    schemes = {row.name: row.scheme for row in model.report().modules}
    assert schemes["fc" if name == "cnn_qat" else "fc1"] == ("w8a8-static" if name == "cnn_qat" else "w8a7-dynamic")


# ---------------------------------------------------------------------------- what is refused


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path, writer):
    trap = tmp_path / "trap"
    writer({"best_configure": {"op": {}}, "fc1.weight": Hostile(trap)}, tmp_path / "best_model.pt")
    with pytest.raises(
        ArtifactError, match=r"was not opened: it holds more than tensors and plain values|cannot be read"
    ):
        load(tmp_path, Linears())
    assert not trap.exists()
    hub = tmp_path / "hub"
    shutil.copytree(FILES / "bert_hub_static", hub)
    writer({"best_configure": {"op": {}}, "x": Hostile(trap)}, hub / "pytorch_model.bin")
    with pytest.raises(ArtifactError):
        OptimizedModel.from_pretrained(hub)
    assert not trap.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused(tmp_path, share):
    content = (FILES / "mlp_static" / "best_model.pt").read_bytes()
    (tmp_path / "best_model.pt").write_bytes(content[: int(share * len(content))])
    model = Linears()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArtifactError, match=r"cannot be read|was not opened"):
        load(tmp_path, model)
    _unchanged(model, before)


def _unchanged(model, before):
    assert all(type(module).__module__.startswith(("torch.", "tests.")) for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_what_is_not_incs_is_told(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        load(tmp_path / "nowhere", Linears())
    with pytest.raises(ArtifactError, match=r"holds no best_model\.pt and no pytorch_model\.bin"):
        load_inc(tmp_path, Linears())
    torch.save(Linears().state_dict(), tmp_path / "best_model.pt")
    with pytest.raises(ArtifactError, match=r"is not a quantized model of INC 2\.X"):
        load(tmp_path, Linears())
    with pytest.raises(ArtifactError, match=r"TorchScript program, as INC saves with backend='ipex'"):
        load_inc(FILES / "mlp_ipex_static", Linears())


def _changed(tmp_path, change):
    content = _stored("mlp_static")
    change(content)
    torch.save(content, tmp_path / "best_model.pt")
    return tmp_path


def _set(key, value):
    return lambda content: content.__setitem__(key, value)


@pytest.mark.filterwarnings("ignore:.*TypedStorage:UserWarning", "ignore:.*quantiz:UserWarning")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("fc9._packed_params._packed_params", (torch.zeros(1), None)), "no packed weight of a linear layer"),
        (_set("rnn._all_weight_values.0", [1, 2]), r"holds 'rnn\._all_weight_values\.0' of type list"),
        (_set("best_configure", {"op": 3}), "op=3: expected a dict of operations"),
        (lambda content: content.pop("fc2.zero_point"), r"only \['scale'\] for 'fc2'"),
        (lambda content: content.pop("norm.weight"), r"for 'norm\.weight' of shape \(32,\) there is nothing"),
        (_set("norm.weight", torch.ones(5)), r"for 'norm\.weight' of shape \(32,\) there is shape \(5,\)"),
        (
            lambda content: (content.pop("fc1_input_scale_0"), content.pop("fc1_input_zero_point_0")),
            r"ranges of the inputs of 'fc1' are not in INC's file, and in Linears nothing before them has one",
        ),
    ],
)
def test_a_state_that_makes_no_sense_is_refused_and_the_model_left_alone(tmp_path, change, words):
    model = Linears()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArtifactError, match=words):
        load(_changed(tmp_path, change), model)
    _unchanged(model, before)


def test_another_model_is_refused():
    with pytest.raises(ArtifactError, match=r"has an int8 layer 'fc1', and Convolutions has no such module"):
        load(FILES / "mlp_static", Convolutions())


class Deciding(Linears):
    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return super().forward(x)


def test_a_model_that_cannot_be_traced_needs_the_ranges_by_name():
    with pytest.raises(
        ArtifactError, match=r"of 'fc2', 'head' are not in INC's file, and in Deciding it cannot be traced"
    ):
        load(FILES / "mlp_static", Deciding())
    given = _expected("mlp_dynamic")
    model = load(FILES / "mlp_dynamic", Deciding())
    torch.testing.assert_close(_output(model, given), given["int8_output"], rtol=1e-5, atol=1e-6)


def test_a_layer_that_has_no_int8_form_keeps_its_values():
    class Own(nn.Linear):
        pass

    model = Linears()
    model.head = Own(32, 4)
    given = _expected("mlp_dynamic")
    load(FILES / "mlp_dynamic", model)
    weight, _ = _stored("mlp_dynamic")["head._packed_params._packed_params"]
    torch.testing.assert_close(model.head.weight.detach(), weight.dequantize())
    notes = {row.name: row.notes for row in model.report().modules}
    assert "a Own has no int8 form" in " ".join(notes["head"])
    torch.testing.assert_close(_output(model, given), given["int8_output"], rtol=0.1, atol=0.02)


# ---------------------------------------------------------------------------- parts


def test_names_without_wrappers():
    assert flat("bert.encoder.layer.0.query.module") == flat("bert.encoder.layer.0.query")
    assert flat("layer1.0.conv1") == "layer1_0_conv1"


def test_codes_are_adopted_whole_or_not_at_all():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    codes = GivenCodes(torch.ones(2, 2, dtype=torch.int8), torch.ones(2), None, QuantScheme(), (1.0, 0))
    with pytest.raises(ModelError, match=r"'1' of Sequential cannot take int8 codes: a ReLU has no int8 form"):
        adopt_codes(model, {"0": codes, "1": codes})
    assert type(model[0]) is nn.Linear
