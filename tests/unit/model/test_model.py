"""`Model`: the module itself, or what a path names, and what is not opened unless it is trusted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inc_torch import PostTrainingQuantConfig, quantization
from inc_torch.core.errors import ArtifactError, ConfigError, ConfigTypeError
from inc_torch.model import Model

X = torch.ones(2, 8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x).relu()


def test_a_module_stays_the_same_object_and_gains_members(tmp_path):
    net = Net()
    weight = net.layer.weight
    assert Model(net, "pytorch_fx", inputs=["x"], backend="default") is net
    assert Model(net) is net is net.model
    assert net.layer.weight is weight
    assert type(net).__name__ == "Net"
    net.save(tmp_path / "saved")
    assert torch.equal(Model(tmp_path / "saved", architecture=Net())(X), net(X))


def test_saved_directories_and_weights(tmp_path):
    int8 = quantization.fit(Net().eval(), PostTrainingQuantConfig(), calib_dataloader=[X])
    int8.save(tmp_path / "int8")
    loaded = Model(str(tmp_path / "int8"), architecture=Net())
    assert torch.equal(loaded(X), int8(X))
    assert loaded.report().modules[0].bits == 8
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ArtifactError, match=r"root='.*weights.pt' holds tensors, and not the code of the model"):
        Model(tmp_path / "weights.pt")
    assert torch.equal(Model(tmp_path / "weights.pt", architecture=Net())(X), Net()(X))


def test_a_hugging_face_directory(tmp_path):
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=9, **size)).eval()
    bert.save_pretrained(tmp_path)
    loaded = Model(tmp_path)
    ids = torch.ones(1, 3, dtype=torch.long)
    assert torch.equal(loaded(ids).last_hidden_state, bert(ids).last_hidden_state)
    assert callable(loaded.report)


class TestCode:
    """What can run code is opened if the caller says so, and only then."""

    def test_a_pickled_module(self, tmp_path):
        torch.save(nn.Sequential(nn.Linear(8, 2)), tmp_path / "module.pt")
        with pytest.raises(ArtifactError, match="opening it could run code, so it is not opened"):
            Model(tmp_path / "module.pt")
        assert Model(tmp_path / "module.pt", weights_only=False)(X).shape == (2, 2)

    @pytest.mark.parametrize("name", ["program.pt2", "program.bin"])
    def test_an_exported_program(self, tmp_path, name):
        torch.export.save(torch.export.export(Net(), (X,)), tmp_path / "program.pt2")
        (tmp_path / "program.pt2").rename(tmp_path / name)
        with pytest.raises(ArtifactError, match=r"is an exported program, which holds code.*torch.export.load\(path\)"):
            Model(tmp_path / name)

    def test_a_trusted_exported_program_computes(self, tmp_path):
        torch.export.save(torch.export.export(Net(), (X,)), tmp_path / "program.pt2")
        assert torch.allclose(Model(tmp_path / "program.pt2", weights_only=False)(X), Net()(X))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of TorchScript
    def test_torchscript(self, tmp_path):
        torch.jit.save(torch.jit.trace(Net(), X), tmp_path / "script.pt")
        with pytest.raises(ArtifactError, match="is a TorchScript archive"):
            Model(tmp_path / "script.pt")


@pytest.mark.parametrize("name", ["frozen.pb", "net.ONNX", "net.h5", "net.keras", "net.xml", "a.tflite", "a.params"])
def test_models_of_others_are_refused_by_name(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ArtifactError, match="inc_torch compresses models of PyTorch only"):
        Model(tmp_path / name)


def test_a_directory_of_tensorflow(tmp_path):
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ArtifactError, match="is a model of TensorFlow"):
        Model(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ((5,), ConfigTypeError, "Model got root of type int"),
        ((Net,), ConfigTypeError, "Net is a class: give an object of it."),
        (("nowhere",), ArtifactError, "'nowhere' does not exist"),
        ((Net(), "tensorflow"), ConfigError, "Model.framework='tensorflow': expected one of 'pytorch'"),
    ],
)
def test_what_is_no_model(arguments, kind, told):
    with pytest.raises(kind) as caught:
        Model(*arguments)
    assert told in str(caught.value)


def test_unknown_keywords_are_told():
    with pytest.raises(ConfigTypeError, match=r"Model has no argument 'achitecture'. Did you mean 'architecture'?"):
        Model(Net(), achitecture=Net())
