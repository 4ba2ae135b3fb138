"""Language models with weights of a few bits: saved, opened by transformers, generating."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from inc_torch import PostTrainingQuantConfig, load, quantization
from inc_torch.core.errors import ArtifactError
from inc_torch.core.streaming import attached_weights
from inc_torch.huggingface import load_empty_model, save_for_huggingface_upstream
from inc_torch.quantizers import WeightOnlyLinear
from tests.unit.huggingface.conftest import gpt2
from tests.unit.huggingface.test_generation import llama

TOKENS = torch.arange(3, 11)[None]
RULES = {"default": {}, "3 bits asym": {"bits": 3, "group_size": 5, "scheme": "asym"}, "nf4": {"dtype": "nf4"}}


def built(build):
    torch.manual_seed(0)
    return build().eval()


def fitted(model, weight, **options):
    rules = {".*": {"weight": weight}} if weight else {}
    return quantization.fit(model, PostTrainingQuantConfig(approach="weight_only", op_type_dict=rules, **options))


def generated(model):
    return model.generate(TOKENS, max_new_tokens=6, min_new_tokens=6, do_sample=False)


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("weight", RULES.values(), ids=RULES)
def test_what_is_generated_survives_both_ways_of_saving(build, weight, tmp_path):
    model = fitted(built(build), weight)
    with torch.no_grad():
        expected = model(TOKENS).logits
    model.save(tmp_path / "plain")
    save_for_huggingface_upstream(model, None, tmp_path / "hub")
    for again in (load(tmp_path / "plain", model=build()), type(built(build)).from_pretrained(tmp_path / "hub")):
        with torch.no_grad():
            assert torch.equal(again(TOKENS).logits, expected)
        assert torch.equal(generated(again), generated(model))
        assert isinstance(again.lm_head, WeightOnlyLinear)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_every_layer_computes_with_its_rounded_weight(build):
    reference, model = built(build), fitted(built(build), {"bits": 8, "group_size": -1})
    kept = reference.get_input_embeddings()
    reference.lm_head.weight = nn.Parameter(reference.lm_head.weight.detach().clone())  # not the embedding any more
    rounded = 0
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, WeightOnlyLinear):
                original = reference.get_submodule(name)
                weight = module.weight if isinstance(original, nn.Linear) else module.weight.t()
                assert not torch.equal(original.weight, weight)
                original.weight.copy_(weight)
                rounded += 1
        assert rounded == {"llama": 2 * 7 + 1, "gpt2": 2 * 4 + 1}[build.__name__]
        assert torch.equal(model.get_input_embeddings().weight, kept.weight)
        torch.testing.assert_close(model(TOKENS).logits, reference(TOKENS).logits, rtol=1e-5, atol=1e-6)


def test_the_card_and_the_report_tell_the_true_bits(tmp_path):
    rules = {"lm_head": {"weight": {"dtype": "fp32"}}, ".*down_proj": {"weight": {"bits": 8}}}
    model = fitted(built(llama), {}, op_name_dict=rules)
    save_for_huggingface_upstream(model, None, tmp_path)
    rows = {row.name: (row.shape, row.bits) for row in model.report().modules}
    assert rows["model.layers.0.mlp.down_proj"] == ((32, 48), 8)
    assert rows["model.layers.0.mlp.up_proj"] == ((48, 32), 4)
    assert rows["model.embed_tokens"] == ((60, 32), 32)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- int4\n- int8\n" in card
    assert "| int4 modules | 12 of 15 |\n| int8 modules | 2 of 15 |" in card
    assert "refuses to load" in card


def test_the_card_names_codes_from_a_table(tmp_path):
    model = fitted(built(llama), {"dtype": "nf4"}, op_name_dict={"lm_head": {"weight": {"bits": 8}}})
    save_for_huggingface_upstream(model, None, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- int8\n- nf4\n" in card
    assert "| int8 modules | 1 of 16 |\n| nf4 modules | 14 of 16 |" in card


def test_codes_and_scales_are_exact_in_a_model_of_another_dtype(tmp_path):
    model = fitted(built(llama), {})
    save_for_huggingface_upstream(model, None, tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.lm_head.scales.dtype == torch.float32
    assert torch.equal(again.lm_head.scales, model.lm_head.scales)
    assert again(TOKENS).logits.dtype == torch.bfloat16


def test_dequantizing_gives_linear_layers_of_the_same_weight(tmp_path):
    model = fitted(built(gpt2), {})
    save_for_huggingface_upstream(model, None, tmp_path)
    with torch.no_grad():
        expected = model(TOKENS).logits
        plain = type(model).from_pretrained(tmp_path).dequantize()
        assert type(plain.transformer.h[0].attn.c_attn) is nn.Linear
        torch.testing.assert_close(plain(TOKENS).logits, expected)


@pytest.mark.parametrize("leaf", ["qweight", "scales", "qzeros"])
def test_a_changed_tensor_is_noticed(leaf, tmp_path):
    model = fitted(built(llama), {"scheme": "asym"})
    save_for_huggingface_upstream(model, None, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[f"lm_head.{leaf}"][0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"'lm_head' was not loaded .* as it was saved"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_layer_by_layer_it_is_the_same_model(build, tmp_path):
    built(build).save_pretrained(tmp_path)
    empty = load_empty_model(tmp_path)
    model = fitted(empty, {}, recipes={"layer_wise_quant": True})
    assert attached_weights(model) is None
    expected = fitted(built(build), {}).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
