"""Language models of two small blocks, and batches of tokens for them."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from inc_torch import PostTrainingQuantConfig

IDS = torch.randint(64, (64, 16), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS[start : start + 8]} for start in range(0, 64, 8)]
FLOAT_HEAD = {"lm_head": {"weight": {"dtype": "fp32"}}}
"""The output layer is in no block, and would hide what is in them."""


def llama(**sizes):
    torch.manual_seed(0)
    usual = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**{"vocab_size": 64, "num_key_value_heads": 2, **usual, **sizes})).eval()


def gpt2():
    torch.manual_seed(0)
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, **tokens)).eval()


def rounding(algorithm, bits=3, group=16, scheme="asym", **options):
    weight = {"bits": bits, "group_size": group, "scheme": scheme, "algorithm": algorithm}
    return PostTrainingQuantConfig(approach="weight_only", op_type_dict={".*": {"weight": weight}}, **options)


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def error(model, reference):
    return (logits(model) - logits(reference)).square().mean().item()
