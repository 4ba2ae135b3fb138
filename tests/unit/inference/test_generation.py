"""Optimized transformers models: all options of their forward, and generation."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from tests.unit.inference.made import assert_close, pair

IDS = torch.randint(1, 50, (2, 5), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def sharpened(model):
    """Greater weights, so that no two tokens are about as likely."""
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model


def llama():
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, vocab_size=50, **heads)), INPUTS


def t5():
    config = T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=50, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config), INPUTS | {"decoder_input_ids": IDS}


@pytest.mark.parametrize("make", [llama, t5])
def test_generate_gives_the_tokens_of_the_model_as_it_was_twice(make):
    torch.manual_seed(0)
    model, example = make()
    plain, optimized = pair(sharpened(model), example)
    expected = plain.generate(**INPUTS, max_new_tokens=6, do_sample=False)
    for _ in range(2):
        assert torch.equal(optimized.generate(**INPUTS, max_new_tokens=6, do_sample=False), expected)


@torch.no_grad()
def test_options_of_bert_and_its_kind_of_output_stay():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 32}
    plain, optimized = pair(BertModel(BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)), INPUTS)
    padded = INPUTS | {"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])}
    turned = padded | {"position_ids": torch.arange(5).flip(0)[None]}
    for inputs in (INPUTS, padded, turned, padded | {"output_hidden_states": True}, padded | {"return_dict": False}):
        for _ in range(2):
            found, expected = optimized(**inputs), plain(**inputs)
            assert type(found) is type(expected)
            for mine, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
                assert_close(mine, other, limit=0.05)
