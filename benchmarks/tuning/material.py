"""What both benchmarks of overhead run on: MiniLM-L6 with its weights, reviews, and an evaluation that never satisfies.

Nothing here imports inc_torch, so that other environments can use it too.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where the packages `benchmarks`
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))  # and `common` lie
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import nn
from transformers.utils import logging

from benchmarks.int8_peers.plain_bert import PlainBert
from common.data import Encoded, encode, load_reviews
from common.model import load_pretrained

TRIALS = 10
CALIBRATED = 100
BATCH = 20
MAX_LENGTH = 48

Inputs = dict[str, torch.Tensor]


class PlainClassifier(nn.Module):
    """The same encoder in plain PyTorch, which torch.fx can trace, with a head on the mean of all places."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.bert, self.classifier = PlainBert(bare(source.bert)), source.classifier

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Logits [B, 2]."""
        return self.classifier(self.bert(input_ids).mean(1))


def load(*, plain: bool = False) -> tuple[nn.Module, list[Inputs], Encoded]:
    """The model with a new head, batches to calibrate on, and 2,000 reviews to evaluate on."""
    logging.disable_progress_bar()
    model, tokenizer = load_pretrained(seed=0)
    if plain:
        model = PlainClassifier(model)
    else:
        model.set_attn_implementation("sdpa")
    reviews = load_reviews()
    training = encode(reviews.train.first(CALIBRATED), tokenizer, MAX_LENGTH)
    calibration = [training.batch(range(start, start + BATCH)).inputs for start in range(0, CALIBRATED, BATCH)]
    return model.eval(), calibration, encode(reviews.test, tokenizer, MAX_LENGTH)


def bare(bert: nn.Module) -> nn.Module:
    """The encoder without its pooler, as `PlainBert` takes it."""
    encoder = type(bert)(bert.config, add_pooling_layer=False)
    encoder.embeddings, encoder.encoder = bert.embeddings, bert.encoder
    return encoder


def first(reviews: Encoded, count: int) -> Encoded:
    """The first ``count`` of them."""
    return replace(reviews, input_ids=reviews.input_ids[:count], labels=reviews.labels[:count])


class Evaluation:
    """Evaluates in earnest, and then says that the first model, the one in float, is right and all others are wrong.

    Attributes:
        seconds: Processor time of each evaluation.
        again: The same of a second one, which finds compiled and packed what the first one had to compile and pack;
            empty without ``twice``.
    """

    def __init__(self, data: Encoded, *, twice: bool = False) -> None:
        self.seconds: list[float] = []
        self.again: list[float] = []
        self._data, self._twice = data, twice

    def __call__(self, model: nn.Module) -> float:
        """1 for the first model, 0 for the others."""
        self.seconds.append(timed(lambda: self._accuracy(model)))
        if self._twice:
            self.again.append(timed(lambda: self._accuracy(model)))
        return float(len(self.seconds) == 1)

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> float:
        right = 0
        for batch in self._data.batches(64):
            output = model(**batch.inputs)
            right += int((getattr(output, "logits", output).argmax(-1) == batch.labels).sum())
        return right / len(self._data)


def timed(function: Callable[[], object]) -> float:
    """Seconds of processor time that a call takes."""
    start = time.process_time()
    function()
    return time.process_time() - start
