"""Models of transformers: masks, caches, tied weights, generation, and directories that ``from_pretrained`` opens."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open

import inc_torch
from inc_torch import MixedPrecisionConfig, mix_precision
from inc_torch.core.errors import ArtifactError
from inc_torch.precision import describe_bfloat16

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
WORDS = {**SMALL, "vocab_size": 100}
CASES = {
    "bert": ("Bert", "ForSequenceClassification", WORDS, r"bert\.encoder\.layer\.1\.attention\.self\.key"),
    "tied": ("Bert", "ForMaskedLM", WORDS, r"cls\.predictions\.decoder"),
    "deberta": (
        "DebertaV2",
        "ForSequenceClassification",
        {**WORDS, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "classifier",
    ),
    "gpt2": (
        "GPT2",
        "LMHeadModel",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1},
        r"transformer\.h\.0\.mlp\.c_fc",
    ),
    "llama": ("Llama", "ForCausalLM", {**WORDS, "tie_word_embeddings": True}, r"model\.layers\.0\.self_attn\.q_proj"),
    "t5": (
        "T5",
        "ForConditionalGeneration",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
        | {"decoder_start_token_id": 0},
        r"decoder\.block\.0\..*",
    ),
    "vit": ("ViT", "ForImageClassification", {**SMALL, "image_size": 32, "patch_size": 8}, "classifier"),
    "resnet": (
        "ResNet",
        "ForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
        r"resnet\.embedder\..*",
    ),
}


def build(name, attention="sdpa"):
    family, head, options, _ = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    if name not in ("resnet", "deberta", "t5"):
        config._attn_implementation = attention
    return getattr(transformers, f"{family}{head}")(config).eval()


def inputs_of(name):
    """Padded on the left, so that rows of a causal mask are empty."""
    ids = torch.randint(2, 100, (2, 10), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    if name in ("vit", "resnet"):
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))}
    inputs = {"input_ids": ids, "attention_mask": mask}
    return {**inputs, "decoder_input_ids": ids[:, :4]} if name == "t5" else inputs


def left_in_float(name):
    return MixedPrecisionConfig(op_name_dict={CASES[name][3]: {"weight": {"dtype": "fp32"}}})


@pytest.fixture(autouse=True)
def _hardware(monkeypatch):
    monkeypatch.setenv("FORCE_BF16", "1")


@pytest.mark.parametrize("config", ["all", "some"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_float32_and_near(name, attention, config):
    model = build(name, attention)
    converted = mix_precision.fit(model, left_in_float(name) if config == "some" else None)
    with torch.no_grad():
        expected, output = model(**inputs_of(name)), converted(**inputs_of(name))
    assert type(output) is type(expected)
    assert output.logits.dtype is torch.float32
    assert F.cosine_similarity(output.logits.flatten(), expected.logits.flatten(), 0) > 0.9995
    assert (list(describe_bfloat16(converted)) == [""]) is (config == "all")


@pytest.mark.parametrize("config", ["all", "some"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_it_generates_with_a_cache(name, config):
    model = build(name)
    converted = mix_precision.fit(model, left_in_float(name) if config == "some" else None)
    inputs = {key: value for key, value in inputs_of(name).items() if "decoder" not in key}
    options = {"max_new_tokens": 4, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    made = converted.generate(**inputs, **options, pad_token_id=0)
    with torch.no_grad():
        scores = made.scores[1]
        ids = made.sequences[:, : made.sequences.shape[1] - (len(made.scores) - 1)]
        if name == "t5":
            output = converted(**inputs, decoder_input_ids=ids)
        else:
            mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], 1)
            places = (mask.cumsum(1) - 1).clamp(min=0)
            output = converted(input_ids=ids, attention_mask=mask, position_ids=places)
    assert scores.dtype is torch.float32
    assert torch.allclose(scores, output.logits[:, -1], atol=0.02)


def test_frequencies_and_positions_keep_their_digits():
    model = build("llama")
    converted = mix_precision.fit(model)
    before, after = model.model.rotary_emb.inv_freq, converted.model.rotary_emb.inv_freq
    assert after.dtype is torch.float32 and torch.equal(before, after)


@pytest.mark.parametrize("config", ["all", "some"])
@pytest.mark.parametrize("name", ["bert", "tied", "gpt2", "resnet"])
def test_a_directory_is_opened_by_transformers_and_computes_the_same(tmp_path, name, config):
    model = build(name)
    converted = mix_precision.fit(model, left_in_float(name) if config == "some" else None)
    inc_torch.save_for_huggingface_upstream(converted, None, tmp_path)
    opened = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        expected, logits = converted(**inputs_of(name)).logits, opened(**inputs_of(name)).logits
    assert torch.equal(logits, expected) and logits.dtype is torch.float32
    assert describe_bfloat16(opened) == describe_bfloat16(converted)
    for one, other in zip(opened.parameters(), converted.parameters(), strict=True):
        assert one.dtype is other.dtype and torch.equal(one, other)
    if config == "all":
        whole = sum(tensor.numel() * 2 for tensor in model.parameters())
        assert (
            tmp_path / "model.safetensors"
        ).stat().st_size < 1.1 * whole + 30_000  # names, and statistics in float32


@pytest.mark.parametrize("config", ["all", "some"])
def test_the_body_alone_and_another_head_open_it(tmp_path, config):
    converted = mix_precision.fit(build("bert"), left_in_float("bert") if config == "some" else None)
    inc_torch.save_for_huggingface_upstream(converted, None, tmp_path)
    body = transformers.BertModel.from_pretrained(tmp_path)
    other = transformers.BertForTokenClassification.from_pretrained(tmp_path)
    weight = converted.bert.encoder.layer[0].output.dense.weight
    for model in (body, other.bert):
        assert torch.equal(model.encoder.layer[0].output.dense.weight, weight)
    assert body(**inputs_of("bert")).last_hidden_state.dtype is torch.float32


def test_damaged_weights_are_found(tmp_path):
    from safetensors.torch import save_file

    converted = mix_precision.fit(build("bert"))
    inc_torch.save_for_huggingface_upstream(converted, None, tmp_path)
    path = tmp_path / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    tensors["bert.encoder.layer.0.output.dense.weight"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"Bfloat16 module 'bert.encoder.layer.0.output.dense' was not loaded"):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path)


def test_the_configuration_says_the_dtype_that_comes_out(tmp_path):
    inc_torch.save_for_huggingface_upstream(mix_precision.fit(build("bert")), None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["quantization_config"]["bfloat16"] == {"": "BertForSequenceClassification"}
    half = transformers.BertForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(**inputs_of("bert")).logits.dtype is torch.bfloat16
