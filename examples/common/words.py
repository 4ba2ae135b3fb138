"""The same reviews as averages of word vectors: real data for the lessons of docs/tutorials, ready in seconds.

A review becomes the mean of MiniLM's vectors of its words, which are real pretrained weights; no transformer runs. A
small perceptron learns them in less than a second.

    vectors  [N, 384]  float32, each column with mean 0 and standard deviation 1 in the training set
    labels   [N]       int64
"""

from __future__ import annotations

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch.utils.data import TensorDataset

from common.data import Reviews, load_reviews
from common.model import find_pretrained

_WORDS = "embeddings.word_embeddings.weight"


def load_word_averages() -> tuple[TensorDataset, TensorDataset]:
    """Vectors and labels of 9,720 reviews to train on, and of 2,000 reviews of other films to test on.

    Raises:
        FileNotFoundError: A package of ``constraints/assets.txt`` is missing.
    """
    folder = find_pretrained()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        words = file.get_tensor(_WORDS)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    reviews = load_reviews()
    train, test = (_averages(part, tokenizer, words) for part in (reviews.train, reviews.test))
    mean, deviation = train.mean(0), train.std(0)
    return (
        TensorDataset((train - mean) / deviation, torch.tensor(reviews.train.labels)),
        TensorDataset((test - mean) / deviation, torch.tensor(reviews.test.labels)),
    )


@torch.no_grad()
def accuracy(model: torch.nn.Module, test: TensorDataset) -> float:
    """The share of vectors whose largest logit is the label's."""
    vectors, labels = test.tensors
    return (model(vectors).argmax(1) == labels).float().mean().item()


def _averages(reviews: Reviews, tokenizer: Tokenizer, words: torch.Tensor) -> torch.Tensor:
    """The mean vector of each review's words, without the tokens at both ends that every text has."""
    rows = tokenizer.encode_batch(list(reviews.texts), add_special_tokens=False)
    return torch.stack([words[row.ids].mean(0) for row in rows])
