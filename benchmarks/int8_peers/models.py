"""The models that are compared, and how each is called: tensors by position in, tensors out.

Every environment builds the modules by this file and loads the same weights (`material`), so candidates differ in
nothing but what they do to the model. ``core`` is the module as its library makes it; ``served`` is a thin module
around it that takes tensors by position, as exporters want it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.int8_peers.vision import torchvision_models, transformers

CACHE_SLOTS = 96  # of a decoding step: the prompt and the tokens generated
PROMPT = 64

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}


class Encoder(nn.Module):
    """A BERT that takes ids and mask by position and returns the last hidden state."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode."""
        return self.core(input_ids=ids, attention_mask=mask)[0]


class DecodingStep(nn.Module):
    """One token through a decoder whose cache has a fixed number of slots, so that every backend can export it.

    Takes the token [1, 1], its position [1, 1] and the cached keys and values, each
    [layers, 1, heads, CACHE_SLOTS, width], of which the first ``position`` count. Returns logits [1, vocabulary] and
    the token's own keys and values [layers, 1, heads, 1, width], which the caller writes into the cache.
    """

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core
        self.new_cache = transformers().DynamicCache

    def forward(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the logits after one token."""
        cache = self.new_cache()
        for layer in range(keys.shape[0]):
            cache.update(keys[layer], values[layer], layer)
        slot = torch.arange(CACHE_SLOTS + 1)
        seen = (slot < position) | (slot == CACHE_SLOTS)  # the token itself comes last
        floor = torch.finfo(keys.dtype).min
        mask = torch.zeros((), dtype=keys.dtype).masked_fill(~seen, floor).view(1, 1, 1, -1)
        out = self.core(
            input_ids=token, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        )
        pairs = cached(out.past_key_values)
        own_keys = torch.stack([key[:, :, -1:] for key, _ in pairs])
        own_values = torch.stack([value[:, :, -1:] for _, value in pairs])
        return out.logits[:, -1], own_keys, own_values


def cached(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values by layer, of old and new releases of transformers."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))


def bert_base() -> nn.Module:
    library = transformers()
    return library.BertModel(library.BertConfig(), add_pooling_layer=False)


def minilm() -> nn.Module:
    library = transformers()
    return library.BertModel(library.BertConfig(**MINILM), add_pooling_layer=False)


def resnet50() -> nn.Module:
    return torchvision_models().resnet50(weights=None)


def efficientnet_lite0() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def smollm2() -> nn.Module:
    library = transformers()
    return library.LlamaForCausalLM(library.LlamaConfig(**SMOLLM2))


@dataclass(frozen=True, slots=True)
class Model:
    """A model to measure.

    Attributes:
        title: Its name in tables.
        kind: "encoder", "vision" or "decoder": what its inputs are.
        build: Makes the module with weights of no meaning.
        batches: Batch sizes of a full run.
    """

    title: str
    kind: str
    build: Callable[[], nn.Module]
    batches: tuple[int, ...]

    def served(self, core: nn.Module) -> nn.Module:
        """Return a module around the core that takes tensors by position."""
        wrapper = {"encoder": Encoder, "decoder": DecodingStep}.get(self.kind)
        return core if wrapper is None else wrapper(core).eval()


MODELS = {
    "bert": Model("BERT-base shape, 128 tokens", "encoder", bert_base, (1, 8)),
    "minilm": Model("MiniLM-L6, 128 tokens", "encoder", minilm, (1,)),
    "resnet50": Model("ResNet-50", "vision", resnet50, (1, 8)),
    "efficientnet": Model("EfficientNet-Lite0", "vision", efficientnet_lite0, (1,)),
    "smollm2": Model("SmolLM2-135M, decoding", "decoder", smollm2, (1,)),
}
