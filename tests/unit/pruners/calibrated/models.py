"""Small models for pruning block by block: plain blocks, and tiny random ones of transformers."""

from __future__ import annotations

import itertools

import torch
import transformers
from torch import nn


class ReluBlock(nn.Module):
    """``y = relu(x @ W.T)``, as in the reference vectors."""

    def __init__(self, weight):
        super().__init__()
        weight = torch.as_tensor(weight)
        self.lin = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.lin.weight.data.copy_(weight)

    def forward(self, x):
        return torch.relu(self.lin(x))


class Chain(nn.Module):
    """Blocks in a ModuleList, one after the other."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def chain(*weights) -> Chain:
    return Chain([ReluBlock(weight) for weight in weights])


def random_chain(*sizes) -> Chain:
    """Blocks with normal weights from one size to the next."""
    return chain(*(torch.randn(after, before) for before, after in itertools.pairwise(sizes)))


def random_batches(count=3, shape=(2, 5, 8)):
    return [torch.randn(shape) for _ in range(count)]


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def llama():
    config = transformers.LlamaConfig(**SIZES, intermediate_size=24, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def opt():
    config = transformers.OPTConfig(
        **SIZES, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16, pad_token_id=1
    )
    return transformers.OPTForCausalLM(config)


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, intermediate_size=24))


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def gemma():
    """Its blocks get different masks and positions: sliding windows and whole ones by turns."""
    config = transformers.Gemma3TextConfig(
        **SIZES, intermediate_size=24, num_key_value_heads=1, head_dim=8, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return transformers.Gemma3ForCausalLM(config)


MODELS = {"llama": llama, "gpt2": gpt2, "opt": opt, "bert": bert, "t5": t5, "gemma": gemma}
BLOCKS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "bert": "bert.encoder.layer",
    "t5": "decoder.block",
    "gemma": "model.layers",
}


def tokens(name, lengths=(7, 5, 9), rows=2):
    """Batches of tokens, each of another length and with other padding, so that masks differ."""
    batches = []
    for length in lengths:
        ids = torch.randint(2, 40, (rows, length))
        mask = torch.ones_like(ids)
        mask[0, : length // 3] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        if name == "t5":
            batch["decoder_input_ids"] = torch.randint(2, 40, (rows, length + 1))
        batches.append(batch)
    return batches
