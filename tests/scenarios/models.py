"""Small real models and data, under the names that the snippets use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast


def bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    return BertForSequenceClassification(config).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(32)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")), pad_token="w0")


def sentences(count: int = 4, size: int = 8) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "input_ids": torch.randint(0, 32, (size, 12), generator=generator),
            "attention_mask": torch.ones(size, 12, dtype=torch.long),
            "labels": torch.randint(0, 3, (size,), generator=generator),
        }
        for _ in range(count)
    ]


def accuracy(model: nn.Module) -> float:
    right = [(model(**batch).logits.argmax(-1) == batch["labels"]).float() for batch in sentences()]
    return float(torch.cat(right).mean())


def train(model: nn.Module) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in sentences():
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def glue() -> dict[str, Any]:
    """What every snippet for GLUE has before it begins."""
    return {
        "model": bert(),
        "tokenizer": tokenizer(),
        "eval_dataloader": sentences(),
        "eval_func": accuracy,
        "train_func": train,
        "output_dir": "out",
        "training_args": SimpleNamespace(output_dir="out"),
    }


def digits(count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of eight features, four classes that a linear layer can tell apart."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(count):
        labels = torch.randint(0, 4, (16,), generator=generator)
        inputs = torch.randn(16, 8, generator=generator) * 0.3
        inputs[torch.arange(16), labels] += 2
        batches.append((inputs, labels))
    return batches


def classifier(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def fraction_of_zeros(*layers: nn.Module) -> float:
    weights = [getattr(layer, "qweight", None) if hasattr(layer, "qweight") else layer.weight for layer in layers]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def write(text: str, name: str = "conf.yaml") -> None:
    Path(name).write_text(text, encoding="utf-8")
