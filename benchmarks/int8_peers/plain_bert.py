"""The BERT encoder in plain PyTorch, for tools that trace by `torch.fx`: transformers' own classes do not trace.

Loads the weights of transformers' ``BertModel`` as they are; for full masks it computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


class _AddAndNorm(nn.Module):
    def __init__(self, inner: int, width: int, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _Attention(width, heads), "output": _AddAndNorm(width, width, epsilon)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _AddAndNorm(inner, width, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class PlainBert(nn.Module):
    """BERT without a pooler, dropout and a mask: ids [batch, length] to the last hidden state.

    Args:
        source: transformers' ``BertModel``, whose weights are shared.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        config = source.config
        shape = (config.hidden_size, config.num_attention_heads, config.intermediate_size, config.layer_norm_eps)
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, config.hidden_size),
                "position_embeddings": nn.Embedding(config.max_position_embeddings, config.hidden_size),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, config.hidden_size),
                "LayerNorm": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(*shape) for _ in range(config.num_hidden_layers))})
        self.load_state_dict(source.state_dict(), assign=True)
        self.eval()

    def embedded(self, ids: Tensor) -> Tensor:
        """Return the sum of the three embeddings, normalized."""
        word, position = self.embeddings["word_embeddings"], self.embeddings["position_embeddings"]
        kind = self.embeddings["token_type_embeddings"]
        places = torch.arange(ids.shape[1])
        return self.embeddings["LayerNorm"](word(ids) + position(places) + kind(torch.zeros_like(ids)))

    def forward(self, ids: Tensor) -> Tensor:
        """Encode ids of full length."""
        x = self.embedded(ids)
        for layer in self.encoder["layer"]:
            x = layer(x)
        return x
