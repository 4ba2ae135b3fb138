"""Physical removal: smaller weights, the same outputs, files that from_pretrained opens."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import transformers
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.core.errors import ConfigError, InexactWarning, ModelError
from inc_torch.pruners.slimming import model_slim, parse_auto_slim_config
from inc_torch.pruners.slimming._channels import Sink, find_sinks
from inc_torch.pruners.slimming._inputs import example_inputs
from tests.unit.pruners.vectors import VECTORS

IDS = [{"input_ids": torch.arange(12).view(2, 6) + 3}]


def bert():
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=40, **shape)).eval()


def llama():
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, **shape)).eval()


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)).eval()


def distilbert():
    config = transformers.DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=64)
    return transformers.DistilBertForSequenceClassification(config).eval()


def t5():
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=40, **shape)).eval()


FAMILIES = {
    "bert": (bert, "intermediate_size", ["bert.encoder.layer.{}.output.dense"], 1),
    "llama": (llama, "intermediate_size", ["model.layers.{}.mlp.down_proj"], 2),
    "gpt2": (gpt2, "n_inner", ["transformer.h.{}.mlp.c_proj"], 1),
    "distilbert": (distilbert, "hidden_dim", ["distilbert.transformer.layer.{}.ffn.lin2"], 1),
    "t5": (t5, "d_ff", ["encoder.block.{}.layer.1.DenseReluDense.wo"], 2),
}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**IDS[0])[0]


def pruned(model: nn.Module, sparsity: float = 0.5, **options: object) -> nn.Module:
    (local,) = parse_auto_slim_config(model, IDS, sparsity, pruning_scope="local", pruning_type="magnitude", **options)
    manager = prepare_compression(model, WeightPruningConfig([local]))
    manager.on_train_begin()
    manager.on_step_begin(0)
    manager.on_train_end()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_feed_forward_parts_are_found_without_their_names(family):
    build, _, patterns, sources = FAMILIES[family]
    torch.manual_seed(0)
    model = build()
    found = find_sinks(model, example_inputs(model, IDS))
    expected = [pattern.format(index) for index in (0, 1) for pattern in patterns]
    assert [sink.name for sink in found if "classifier" not in sink.name] == expected
    assert {len(sink.sources) for sink in found if "classifier" not in sink.name} == {sources}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slimmed_model_gives_the_same_and_is_opened_by_from_pretrained(family, tmp_path):
    build, attribute, patterns, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = pruned(build())
    before, size = logits(model), sum(parameter.numel() for parameter in model.parameters())
    assert model_slim(model, IDS, round_multiplier=8) is model
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.95 * size
    assert getattr(model.config, attribute) == 32
    sink = model.get_submodule(patterns[0].format(1))
    assert sorted(sink.weight.shape) == [16, 32]
    assert 32 in (getattr(sink, "in_features", None), getattr(sink, "nx", None))
    model.save_pretrained(tmp_path)
    again = type(build()).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    logits_of_training = model.train()(**IDS[0])[0]
    logits_of_training.sum().backward()
    assert sink.weight.grad.shape == sink.weight.shape


def test_layers_of_one_kind_stay_equally_wide():
    """Pruned together they lose different numbers of channels; the fewest count."""
    torch.manual_seed(0)
    model = bert()
    for layer, dead in zip(model.bert.encoder.layer, (30, 20), strict=True):
        layer.output.dense.weight.data[:, :dead] = 0
    before = logits(model)
    model_slim(model, IDS, round_multiplier=8)
    assert model.config.intermediate_size == 64 - 16
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(module for pair in pairs for module in (nn.Linear(*pair), nn.ReLU())))


class Residual(nn.Module):
    """Somebody else looks at the channels of ``up`` as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x)
        return hidden + self.down(hidden.relu())


def test_channels_that_something_else_looks_at_stay_and_the_model_is_as_it_was():
    model = Residual()
    model.down.weight.data[:, :4] = 0
    before, weights = model(torch.ones(2, 4)), dict(model.named_parameters())
    with pytest.warns(InexactWarning, match="found nothing to take out of Residual"):
        model_slim(model, [torch.ones(2, 4)], round_multiplier=1)
    assert torch.equal(model(torch.ones(2, 4)), before)
    assert all(weights[name] is parameter for name, parameter in model.named_parameters())
    assert (model.up.out_features, model.down.in_features) == (8, 8)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(x)))


def test_what_mixes_channels_or_places_is_no_pair():
    assert find_sinks(Mixing(), example_inputs(nn.Linear(4, 8), [torch.randn(3, 4)])) == []
    model = nn.Sequential(nn.Linear(4, 8), nn.Softmax(0), nn.Linear(8, 2))  # over the batch
    assert find_sinks(model, example_inputs(model, [torch.randn(3, 4)])) == []


def test_a_chain_of_layers_is_slimmed_at_every_link():
    model = mlp(4, 12, 10, 3)
    model[2].weight.data[:, ::2] = 0
    model[4].weight.data[:, :3] = 0
    batch = torch.randn(5, 4)
    before = model(batch)
    model_slim(model, [batch], round_multiplier=1)
    assert [tuple(layer.weight.shape) for layer in model[::2]] == [(6, 4), (7, 6), (3, 7)]
    torch.testing.assert_close(model(batch), before, rtol=1e-5, atol=1e-6)
    assert find_sinks(model, example_inputs(model, [batch])) == [Sink("2", ("0",)), Sink("4", ("2",))]


# ------------------------------------------------------------------------------------------- vectors


class TwoLayers(nn.Module):
    """fc2(relu(fc1(embedding(ids)))) of the slim vectors."""

    def __init__(self, inputs: dict) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, second = torch.tensor(inputs["fc1_weight"]), torch.tensor(inputs["fc2_weight"])
        self.embedding = nn.Embedding(11, first.shape[1])
        self.fc1, self.fc2 = nn.Linear(*reversed(first.shape)), nn.Linear(*reversed(second.shape))
        for layer, name in ((self.fc1, "fc1"), (self.fc2, "fc2")):
            layer.weight.data, layer.bias.data = (torch.tensor(inputs[f"{name}_{kind}"]) for kind in ("weight", "bias"))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(self.embedding(ids)).relu())


@pytest.mark.parametrize("name", ["Z01-slim-ffn", "Z03-slim-ffn-too-few"])
def test_as_inc(name):
    vector = VECTORS[name]
    model, batch, expected = TwoLayers(vector["inputs"]), [torch.tensor([[1, 5, 7]])], vector["expected"]
    assert parse_auto_slim_config(model, batch, 0.5, pruning_scope="local") == expected["auto_slim_config"]
    multiplier = vector["config"]["round_multiplier"]
    if name.startswith("Z03"):
        with pytest.warns(InexactWarning, match=f"found nothing to take out of TwoLayers: .* {multiplier} or more"):
            model_slim(model, batch, multiplier)
    else:
        model_slim(model, batch, multiplier)
    assert list(model.fc1.weight.shape) == expected["fc1_shape"]
    assert list(model.fc2.weight.shape) == expected["fc2_shape"]
    assert len(model.fc1.bias) == expected["fc1_bias_len"]
    for key in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
        if key in expected:
            layer, kind = key.split("_")
            assert model.get_submodule(layer).get_parameter(kind).tolist() == expected[key]


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: model_slim(mlp(4, 8, 2)), ModelError, "nothing to run Sequential on: expected a dataloader"),
        (lambda: model_slim(mlp(4, 8, 2), []), ModelError, "nothing to run Sequential on"),
        (lambda: model_slim(mlp(4, 8, 2), [torch.ones(1, 4)]), ModelError, "run on a single token or sample"),
        (lambda: model_slim(mlp(4, 8, 2), [], -1), ConfigError, "round_multiplier=-1: expected an integer of 0"),
        (lambda: parse_auto_slim_config(mlp(4, 8), [torch.ones(2, 4)], 0.5), ModelError, "nothing that pruning could"),
        (lambda: parse_auto_slim_config(mlp(4, 8), None, 1.0), ConfigError, "ffn2_sparsity=1.0: expected a number"),
        (lambda: parse_auto_slim_config(mlp(4, 8), None, 0.0, 0.5), ModelError, "has no attention of which heads"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_names_find_no_other_layer():
    middle = [nn.LayerNorm(6) for _ in range(9)]
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), *middle, nn.Linear(6, 6), nn.ReLU())
    batch = [torch.randn(3, 4)]
    assert [sink.name for sink in find_sinks(model, example_inputs(model, batch))] == ["2"]
    (local,) = parse_auto_slim_config(model, batch, 0.5, pruning_type="magnitude")
    assert local["op_names"] == ["^2$"]
    manager = prepare_compression(model, WeightPruningConfig([local]))
    assert [layer.name for layer in manager.callbacks.callbacks_list[0].pruners[0].layers] == ["2"]


def test_nothing_asked_for_is_nothing_to_prune():
    assert parse_auto_slim_config(mlp(4, 8, 2)) == []


def test_transformers_have_inputs_of_their_own():
    torch.manual_seed(0)
    model = pruned(bert())
    twin = copy.deepcopy(model)
    model_slim(model, round_multiplier=8)
    torch.testing.assert_close(logits(model), logits(twin), rtol=1e-4, atol=1e-5)
