"""What may be named as the model, and that nothing that is read can run code."""

from __future__ import annotations

import os
import re

import pytest
import torch
from torch import nn

from inc_torch import BenchmarkConfig, PostTrainingQuantConfig, benchmark, quantization, save_for_huggingface_upstream
from inc_torch.benchmark._sources import source_of
from inc_torch.core.errors import ArtifactError, ConfigTypeError

BATCHES = [torch.ones(2, 8)] * 7


def mlp():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def fit(*args, **kwargs):
    return benchmark.fit(*args, quiet=True, **kwargs)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_saved_directory_is_loaded_into_a_copy_of_the_architecture(tmp_path):
    int8 = quantization.fit(mlp(), PostTrainingQuantConfig(), calib_dataloader=BATCHES)
    int8.save(tmp_path / "int8")
    architecture = mlp()
    result = fit(tmp_path / "int8", BenchmarkConfig(), BATCHES, architecture=architecture, compare=architecture)
    assert [model.name for model in result.models] == ["int8", "Sequential"]
    assert dict(result.model.modules) == {"Int8Linear": 2}
    assert dict(result.compared.modules) == {"Linear": 2}
    assert type(architecture[0]) is nn.Linear


def test_a_hugging_face_directory_needs_nothing(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    size = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "vocab_size": 9,
    }
    model = BertForSequenceClassification(BertConfig(**size)).eval()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\n")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    int8 = quantization.fit(model, PostTrainingQuantConfig(approach="dynamic"))
    save_for_huggingface_upstream(int8, tokenizer, tmp_path / "hub")
    result = fit(str(tmp_path / "hub"), BenchmarkConfig(iteration=8))
    assert result.model.name == "hub"
    assert result.model.inputs == "input_ids=int64 [1, 128], attention_mask=int64 [1, 128]"
    assert result.model.modules["Int8DynamicLinear"] == 8


def test_a_state_dict_goes_into_a_copy_of_the_architecture(tmp_path):
    torch.save(mlp().state_dict(), tmp_path / "weights.pt")
    torch.save({"epoch": 3, "model_state_dict": mlp().state_dict()}, tmp_path / "checkpoint.pt")
    fresh = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    before = fresh[0].weight.detach().clone()
    for name in ("weights.pt", "checkpoint.pt"):
        opened = source_of(tmp_path / name, fresh, "model")
        assert opened.name == name
        assert torch.equal(opened.model(BATCHES[0]), mlp()(BATCHES[0]))
    assert torch.equal(fresh[0].weight, before)


def test_a_module_of_classes_that_torch_was_told_are_safe_is_opened(tmp_path):
    torch.save(nn.Linear(8, 2), tmp_path / "module.pt")
    with torch.serialization.safe_globals([nn.Linear, set]):
        assert isinstance(source_of(tmp_path / "module.pt", None, "model").model, nn.Linear)


def refused(kind, *args, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        fit(*args, **kwargs)
    return str(caught.value)


class TestRefused:
    def test_a_hostile_pickle_does_not_run(self, tmp_path):
        torch.save({"weight": Hostile(tmp_path / "pwned")}, tmp_path / "hostile.pt")
        message = refused(ArtifactError, tmp_path / "hostile.pt", architecture=mlp())
        assert not (tmp_path / "pwned").exists()
        torch.load(tmp_path / "hostile.pt", weights_only=False)
        assert (tmp_path / "pwned").exists()  # it is hostile indeed
        assert "holds more than tensors and plain values, or is damaged; opening it could run code" in message
        assert "torch.load(path, weights_only=False)" in message

    def test_a_pickled_module_says_how_else(self, tmp_path):
        torch.save(mlp(), tmp_path / "module.pt")
        message = refused(ArtifactError, tmp_path / "module.pt")
        assert message.endswith("Better save model.state_dict(), and pass architecture=.")

    def test_a_damaged_file(self, tmp_path):
        (tmp_path / "broken.pt").write_bytes(b"\x80\x02 no")
        assert "or is damaged" in refused(ArtifactError, tmp_path / "broken.pt")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of TorchScript
    def test_torchscript(self, tmp_path):
        torch.jit.save(torch.jit.trace(nn.Linear(8, 2), torch.ones(1, 8)), tmp_path / "script.pt")
        assert "is a TorchScript archive, which holds code" in refused(ArtifactError, tmp_path / "script.pt")

    def test_weights_without_an_architecture(self, tmp_path):
        torch.save(mlp().state_dict(), tmp_path / "weights.pt")
        message = refused(ArtifactError, mlp(), compare=tmp_path / "weights.pt")
        assert message == (
            f"compare={str(tmp_path / 'weights.pt')!r} holds tensors, and not the code of the model. Pass "
            "architecture=, the float model as your code builds it; on the command line --architecture module:function."
        )

    def test_weights_of_another_architecture(self, tmp_path):
        torch.save(mlp().state_dict(), tmp_path / "weights.pt")
        message = refused(ArtifactError, tmp_path / "weights.pt", architecture=nn.Linear(2, 2))
        assert re.search(r"is not a state_dict of Linear: (.|\n)*Missing key", message)

    def test_a_file_without_weights(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "epoch.pt")
        message = refused(ArtifactError, tmp_path / "epoch.pt", architecture=mlp())
        assert message.endswith(
            "holds dict, expected a state_dict, or a dict with one under 'state_dict', 'model_state_dict', 'model'. "
            "Save model.state_dict()."
        )

    def test_what_is_not_there(self):
        assert refused(ArtifactError, "no/such/model").startswith(
            "'no/such/model' does not exist: expected a directory, or a file of torch.save. Check the path (it is seen"
        )

    @pytest.mark.parametrize(
        ("given", "told"),
        [(5, "of type int: expected a torch.nn.Module, or the path"), (nn.Linear, "Linear is a class: give an object")],
    )
    def test_what_is_no_model(self, given, told):
        assert told in refused(ConfigTypeError, given)

    def test_an_architecture_that_is_none(self, tmp_path):
        torch.save(mlp().state_dict(), tmp_path / "weights.pt")
        message = refused(ConfigTypeError, tmp_path / "weights.pt", architecture=nn.Linear)
        assert message == "benchmark.fit got architecture of type type: expected a torch.nn.Module."
