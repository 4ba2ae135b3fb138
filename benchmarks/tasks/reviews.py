"""MiniLM-L6 with its weights and a new head, on the review snippets of Rotten Tomatoes: rotten or fresh."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.tasks.task import Inputs, Phase, Task, is_float
from common.data import encode, load_reviews
from common.latency import LENGTH
from common.model import load_pretrained, predict

MAX_LENGTH = 48
BATCH_SIZE = 32
FIRST, SECOND = Phase(120, 1.5e-4), Phase(120, 3e-4)


def load() -> Task:
    """The task; training sees 3,840 of 9,720 reviews in each phase, the test has 2,000 of other movies.

    Raises:
        FileNotFoundError: The package with the weights or the one with the reviews is missing.
    """
    reviews, (_, tokenizer) = load_reviews(), load_pretrained(seed=0)
    training, test = (encode(part, tokenizer, MAX_LENGTH) for part in (reviews.train, reviews.test))
    labels = torch.tensor(test.labels)

    def batches(steps: int, seed: int) -> Iterator[tuple[Inputs, torch.Tensor]]:
        return ((batch.inputs, batch.labels) for batch in training.stream(BATCH_SIZE, steps, seed))

    def logits(model: nn.Module, inputs: Inputs) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**inputs).logits

    def right(model: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_float(model)):
            return predict(model, test).argmax(-1) == labels

    def sample(rows: int) -> Inputs:
        generator = torch.Generator().manual_seed(rows)
        ids = torch.randint(1000, tokenizer.vocab_size, (rows, LENGTH), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return Task(
        "MiniLM-L6, Rotten Tomatoes",
        lambda seed: load_pretrained(seed)[0],
        batches,
        logits,
        right,
        sample,
        labels,
        FIRST,
        SECOND,
    )
