"""Which layers of which models are feed-forward blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils.parametrizations import weight_norm
from transformers.pytorch_utils import Conv1D

from inc_torch.quantizers import QuantSpec, prepare_fake_quant
from inc_torch.tuning._blocks import feed_forward_blocks
from tests.architectures.zoo import ZOO

SEEN = {
    name.removeprefix("blocks/"): {tuple(block) for block in seen["ffn_blocks"]}
    for name, seen in json.loads(
        (Path(__file__).parents[2] / "vectors" / "quantization.json").read_text(encoding="utf-8")
    )["default_coverage"]["untraceable_model_submodules"].items()
    if name.startswith("blocks/")
}


def expected(*places):
    """Blocks by the list that they are in and what their layers are called in both of its elements."""
    return tuple(
        tuple(f"{place}.{index}.{layer}" for layer in layers.split()) for place, layers in places for index in range(2)
    )


EXPECTED = {
    "bert": expected(("bert.encoder.layer", "intermediate.dense output.dense")),
    "distilbert": expected(("distilbert.transformer.layer", "ffn.lin1 ffn.lin2")),
    "roberta": expected(("roberta.encoder.layer", "intermediate.dense output.dense")),
    "albert": expected(("albert.encoder.albert_layer_groups.0.albert_layers", "ffn ffn_output"))[:1],  # layers are one
    "gpt2": expected(("transformer.h", "mlp.c_fc mlp.c_proj")),
    "llama": expected(("model.layers", "mlp.gate_proj mlp.up_proj mlp.down_proj")),
    "opt": expected(("model.decoder.layers", "fc1 fc2")),
    "bart": expected(("model.encoder.layers", "fc1 fc2"), ("model.decoder.layers", "fc1 fc2")),
    "whisper": expected(("model.encoder.layers", "fc1 fc2"), ("model.decoder.layers", "fc1 fc2")),
    "t5": expected(
        ("encoder.block", "layer.1.DenseReluDense.wi layer.1.DenseReluDense.wo"),
        ("decoder.block", "layer.2.DenseReluDense.wi layer.2.DenseReluDense.wo"),
    ),
    "vit": expected(("vit.layers", "mlp.fc1 mlp.fc2")),
    "swin": expected(
        ("swin.encoder.layers.0.blocks", "mlp.fc1 mlp.fc2"), ("swin.encoder.layers.1.blocks", "mlp.fc1 mlp.fc2")
    ),
    "resnet": (),
    "convnext": (),  # its two linear layers are the same thing, but after a convolution
    "debertav2": expected(("deberta.encoder.layer", "intermediate.dense output.dense")),
    "wav2vec2": expected(
        ("wav2vec2.encoder.layers", "feed_forward.intermediate_dense feed_forward.output_dense"),
    ),
    "clip": expected(
        ("text_model.encoder.layers", "mlp.fc1 mlp.fc2"), ("vision_model.encoder.layers", "mlp.fc1 mlp.fc2")
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_blocks_of_a_known_architecture(name):
    assert feed_forward_blocks(ZOO[name].build()) == EXPECTED[name]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_layers_prepared_for_quantization_are_the_same_layers(name):
    model = ZOO[name].build()
    prepare_fake_quant(model, QuantSpec())
    assert feed_forward_blocks(model) == EXPECTED[name]


def test_all_the_models_whose_blocks_inc_was_asked_for_are_compared():
    assert SEEN.keys() == {"bert", "distilbert", "llama", "gpt2", "opt", "t5"}


@pytest.mark.parametrize("name", SEEN)
def test_what_inc_finds_is_found(name):
    found = feed_forward_blocks(ZOO[name].build().base_model)
    without_attention = {tuple(layer for layer in block if "EncDecAttention" not in layer) for block in SEEN[name]}
    assert set(found) == without_attention
    assert len(found) == len(SEEN[name])


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5_SIZES = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4}
MORE = {
    "minilm": (
        "Bert",
        {**SIZES, "intermediate_size": 128},
        expected(("encoder.layer", "intermediate.dense output.dense")),
    ),
    "a gate in the first layer": (
        "ModernBert",
        {**SIZES, **SPECIAL, "cls_token_id": 1, "sep_token_id": 2},
        expected(("layers", "mlp.Wi mlp.Wo")),
    ),
    "heads wider than the model, and half as many keys": (
        "Qwen3",
        {**SIZES, "num_key_value_heads": 2, "head_dim": 16},
        expected(("layers", "mlp.gate_proj mlp.up_proj mlp.down_proj")),
    ),
    "heads narrower than the model": (
        "T5",
        {**T5_SIZES, "d_kv": 6, "feed_forward_proj": "gated-gelu"},
        expected(
            ("encoder.block", "layer.1.DenseReluDense.wi_0 layer.1.DenseReluDense.wi_1 layer.1.DenseReluDense.wo"),
            ("decoder.block", "layer.2.DenseReluDense.wi_0 layer.2.DenseReluDense.wi_1 layer.2.DenseReluDense.wo"),
        ),
    ),
    "attention of bare parameters": (
        "XLNet",
        {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
        expected(("layer", "ff.layer_1 ff.layer_2")),
    ),
    "two in a layer": (
        "Wav2Vec2Conformer",
        {**SIZES, "conv_dim": [8], "conv_kernel": [4], "conv_stride": [2]},
        tuple(
            (f"encoder.layers.{index}.{name}.intermediate_dense", f"encoder.layers.{index}.{name}.output_dense")
            for index in range(2)
            for name in ("ffn1", "ffn2")
        ),
    ),
    "experts, each of them a block": (
        "SwitchTransformers",
        {**T5_SIZES, "d_kv": 8, "num_decoder_layers": 1, "num_sparse_encoder_layers": 1, "num_experts": 2},
        (
            ("encoder.block.0.layer.1.mlp.wi", "encoder.block.0.layer.1.mlp.wo"),
            *(
                tuple(f"encoder.block.1.layer.1.mlp.experts.expert_{index}.{name}" for name in ("wi", "wo"))
                for index in range(2)
            ),
            ("decoder.block.0.layer.2.mlp.wi", "decoder.block.0.layer.2.mlp.wo"),
        ),
    ),
    "experts in one tensor, which are no layers": (
        "Mixtral",
        {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2},
        (),
    ),
}


@pytest.mark.parametrize(("kind", "sizes", "blocks"), MORE.values(), ids=MORE)
def test_the_blocks_of_other_transformers(kind, sizes, blocks):
    config = getattr(transformers, f"{kind}Config")(**sizes)
    assert feed_forward_blocks(getattr(transformers, f"{kind}Model")(config)) == blocks


def test_a_single_layer_is_enough():
    model = transformers.BertModel(transformers.BertConfig(**{**SIZES, "num_hidden_layers": 1}))
    assert feed_forward_blocks(model) == (("encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"),)


@pytest.mark.parametrize("inner", [4, 8, 24], ids=["narrower", "as wide", "wider"])
def test_the_transformer_of_torch(inner):
    model = nn.Transformer(8, 2, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=inner, batch_first=True)
    layers = "linear1 linear2"
    assert feed_forward_blocks(model) == expected(("encoder.layers", layers), ("decoder.layers", layers))


class Attention(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)


class Parts(nn.Module):
    """Of these names."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def chain(*sizes):
    return Parts(**{f"l{index}": nn.Linear(*pair) for index, pair in enumerate(sizes)})


def network(*layers):
    return Parts(layers=nn.ModuleList(layers))


SHAPES = {
    "there and back": ([(8, 24), (24, 8)], True),
    "narrower inside": ([(8, 2), (2, 8)], True),
    "as wide inside": ([(8, 8), (8, 8)], True),
    "gate, up, down": ([(8, 24), (8, 24), (24, 8)], True),
    "up, down, gate": ([(8, 24), (24, 8), (8, 24)], True),
    "gate and up in one": ([(8, 48), (24, 8)], True),
    "gate as wide as the model, which queries, keys and values would be": ([(8, 8), (8, 8), (8, 8)], False),
    "queries, keys and values in one, half as many keys": ([(8, 16), (8, 8)], False),
    "does not lead back": ([(8, 24), (24, 9)], False),
    "does not fit": ([(8, 24), (23, 8)], False),
    "gates of two widths": ([(8, 24), (8, 23), (24, 8)], False),
    "three in a row": ([(8, 24), (24, 24), (24, 8)], False),
    "two and two": ([(8, 24), (24, 8), (8, 24), (24, 8)], False),
    "one": ([(8, 8)], False),
}


@pytest.mark.parametrize(("shapes", "is_block"), SHAPES.values(), ids=SHAPES)
def test_shapes(shapes, is_block):
    layer = Parts(attention=Attention(), feed=chain(*shapes))
    block = tuple(f"layers.0.feed.l{index}" for index in range(len(shapes)))
    assert feed_forward_blocks(network(layer)) == ((block,) if is_block else ())


@pytest.mark.parametrize("kind", [nn.ModuleList, lambda layers: nn.Sequential(*layers)], ids=["list", "sequence"])
def test_layers_stand_in_a_list_of_either_kind(kind):
    layers = [Parts(attention=Attention(), feed=chain((8, 24), (24, 8))) for _ in range(2)]
    assert feed_forward_blocks(Parts(layers=kind(layers))) == expected(("layers", "feed.l0 feed.l1"))
    assert feed_forward_blocks(Parts(first=layers[0], second=layers[1])) == ()


def test_layers_beside_the_attention_and_deep_inside_belong_together():
    layer = Parts(attention=Attention(), up=Parts(inside=Parts(dense=nn.Linear(8, 24))), down=nn.Linear(24, 8))
    assert feed_forward_blocks(network(layer)) == (("layers.0.up.inside.dense", "layers.0.down"),)


def test_the_order_is_that_of_the_model():
    first = Parts(feed=chain((8, 24), (24, 8)), attention=Attention(), other=chain((8, 16), (16, 8)))
    second = Parts(other=chain((4, 6), (6, 4)), attention=Attention(4))
    assert feed_forward_blocks(network(first, second)) == (
        ("layers.0.feed.l0", "layers.0.feed.l1"),
        ("layers.0.other.l0", "layers.0.other.l1"),
        ("layers.1.other.l0", "layers.1.other.l1"),
    )


def test_attention_that_reads_keys_of_another_layer_is_no_block():
    """As in the last layers of Gemma 3n, which have two matrices in their attention, as wide as a block or not."""
    layers = [
        Parts(attention=chain((8, inner), (inner, 8)), feed=chain((8, 24), (8, 24), (24, 8))) for inner in (8, 16)
    ]
    assert feed_forward_blocks(network(*layers)) == tuple(
        tuple(f"layers.{index}.feed.l{layer}" for layer in range(3)) for index in range(2)
    )


class Transposed(Conv1D):
    """What somebody derived."""


def test_transposed_layers_are_told_by_the_name_of_their_class():
    layer = Parts(attention=Attention(), feed=Parts(up=Transposed(24, 8), down=Transposed(8, 24)))
    assert feed_forward_blocks(network(layer)) == (("layers.0.feed.up", "layers.0.feed.down"),)
    layer.feed.down = nn.Conv1d(24, 8, 1)
    assert feed_forward_blocks(network(layer)) == ()


def squeeze(width=8):
    """Scales channels by what two linear layers make of their means."""
    return Parts(conv=nn.Conv2d(width, width, 3), norm=nn.BatchNorm2d(width), squeeze=chain((width, 2), (2, width)))


def residual():
    return Parts(feed=chain((8, 24), (24, 8)))


WITHOUT = {
    "nothing": nn.Sequential(),
    "a layer": nn.Linear(4, 4),
    "a perceptron": nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8)),
    "a longer one": nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 8)),
    "residual perceptrons": nn.Sequential(nn.Linear(4, 8), residual(), residual(), nn.Linear(8, 8)),
    "an autoencoder": Parts(encoder=nn.Sequential(nn.Linear(8, 2)), decoder=nn.Sequential(nn.Linear(2, 8))),
    "convolutions": nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2)),
    "squeeze and excitation": nn.Sequential(
        nn.Sequential(squeeze(), squeeze()), nn.Sequential(squeeze(8), squeeze(16))
    ),
    "convolutions and tables of that width": network(
        Parts(
            table=nn.Embedding(8, 8), sums=nn.EmbeddingBag(9, 8), conv=nn.Conv1d(8, 8, 3), feed=chain((8, 24), (24, 8))
        )
    ),
    "attention of another width": network(Parts(attention=Attention(6), feed=chain((8, 24), (24, 8)))),
    "one matrix of that width": network(Parts(router=nn.Linear(8, 4), feed=chain((8, 24), (24, 8)))),
    "a head behind attention": Parts(layers=nn.ModuleList([Attention(), Attention()]), head=chain((8, 24), (24, 8))),
    "a head in another list": nn.Sequential(
        Parts(layer=Attention()), nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 8))
    ),
    "a recurrent network": Parts(rnn=nn.LSTM(8, 8, num_layers=2), head=nn.Linear(8, 2)),
}


@pytest.mark.parametrize("model", WITHOUT.values(), ids=WITHOUT)
def test_models_without_blocks(model):
    assert feed_forward_blocks(model) == ()


def bert():
    return transformers.BertModel(transformers.BertConfig(**SIZES)).eval()


BERT = expected(("encoder.layer", "intermediate.dense output.dense"))


def test_names_are_those_without_wrappers():
    model = bert()
    layers = model.encoder.layer
    layers[0], layers[1] = torch.compile(layers[0], backend="eager"), checkpoint_wrapper(layers[1])
    assert feed_forward_blocks(torch.compile(model, backend="eager")) == BERT


def test_what_adapters_add_does_not_count():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query", "value", "intermediate.dense", "output.dense"], r=2)
    assert feed_forward_blocks(peft.inject_adapter_in_model(config, bert())) == BERT


def test_parametrized_weights_are_those_of_their_layer():
    model = bert()
    weight_norm(model.encoder.layer[0].output.dense)
    weight_norm(model.encoder.layer[1].attention.self.query)
    assert feed_forward_blocks(model) == BERT


def test_parameters_without_values_are_passed_over():
    layer = Parts(attention=Attention(), norm=nn.LazyBatchNorm1d(), feed=chain((8, 24), (24, 8)), lazy=nn.LazyLinear(4))
    assert feed_forward_blocks(network(layer)) == (("layers.0.feed.l0", "layers.0.feed.l1"),)


def test_a_layer_used_in_two_places_is_one():
    layer = Parts(attention=Attention(), feed=chain((8, 24), (24, 8)))
    assert feed_forward_blocks(network(layer, layer)) == (("layers.0.feed.l0", "layers.0.feed.l1"),)


def test_the_model_is_not_touched():
    model = bert()
    before = {name: (type(module), module.training) for name, module in model.named_modules()}
    feed_forward_blocks(model)
    assert {name: (type(module), module.training) for name, module in model.named_modules()} == before
