"""Models and steps that several test files use."""

from __future__ import annotations

import copy

import torch
from torch import nn

from inc_torch.quantizers import QuantScheme, QuantSpec, convert, enable_fake_quant, fold_ranges, prepare_fake_quant


def observed(module: nn.Module, inputs: torch.Tensor, scheme: QuantScheme | None = None) -> nn.Module:
    """Prepare ``module``, show it ``inputs`` in one step of training, and return it in eval."""
    prepare_fake_quant(module, QuantSpec(default=scheme or QuantScheme()))
    enable_fake_quant(module, observe=True)
    module.train()
    with torch.no_grad():
        module(inputs)
    fold_ranges(module)
    return module.eval()


def converted(module: nn.Module) -> nn.Module:
    """An int8 copy of a prepared module."""
    int8 = copy.deepcopy(module)
    convert(int8)
    return int8


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Greatest difference over the greatest value."""
    result, expected = result.detach().double(), expected.detach().double()
    return float((result - expected).abs().max() / expected.abs().max())


ROUNDING = 3e-6
"""How far int8 and fake-quant may be apart, relative to the greatest output.

The kernel sums int32 exactly and scales once; fake-quant multiplies and sums in float32, whose unit is 6e-8, over up
to some thousand terms. Input codes are the same in both, bit for bit.
"""


def tiny_bert() -> nn.Module:
    """A BERT of two layers with random weights and no dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def tiny_gpt2() -> nn.Module:
    """A GPT-2 of two layers, whose layers are ``Conv1D`` and whose output layer is tied to its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64,
            n_positions=16,
            n_embd=32,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
