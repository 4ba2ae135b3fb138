"""Overlap of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import final

import numpy as np
import torch

from inc_torch.core.batches import described
from inc_torch.core.errors import ModelError
from inc_torch.metric._base import REGISTRY, BaseMetric
from inc_torch.metric._values import no_sample

__all__ = ["F1"]


@final
@REGISTRY.register("F1", summary="overlap of predicted and right tokens, the mean over updates")
class F1(BaseMetric):
    """The harmonic mean of precision and recall of a bag of tokens, the mean over all updates.

        overlap = sum over tokens of min(count in preds, count in labels)
        f1      = 2 * overlap / (len(preds) + len(labels))

    That is the score of one answer of SQuAD, not the F1 of a binary classifier. ``preds`` and ``labels`` are one
    sequence each, of any length: ids, words, or a text that is cut at spaces.

    Raises:
        ConfigError: By `result`: there was no update.
        ModelError: By `update`: no flat sequence was given.

    Example:
        >>> metric = F1()
        >>> metric.update("the cat sat", "a cat sat down quietly")
        >>> metric.result()
        0.5

    Source: Rajpurkar et al., SQuAD, arXiv:1606.05250; INC 2.6.1 ``F1``.
    """

    def __init__(self) -> None:
        self.reset()

    def __repr__(self) -> str:
        return "F1()"

    def reset(self) -> None:
        self._sum = 0.0
        self._updates = 0

    def update(self, preds: object, labels: object) -> None:
        given, expected = _tokens(preds), _tokens(labels)
        total = given.total() + expected.total()
        self._sum += 2 * (given & expected).total() / total if total else 1.0
        self._updates += 1

    def result(self) -> float:
        if not self._updates:
            raise no_sample(self)
        return self._sum / self._updates


def _tokens(values: object) -> Counter[Hashable]:
    """How often each token comes; the text of words is cut at spaces."""
    items: object = values
    if isinstance(values, str):
        items = values.split()
    elif isinstance(values, torch.Tensor | np.ndarray):
        items = values.tolist()
    if isinstance(items, Iterable):
        tokens = [token.item() if isinstance(token, torch.Tensor) and not token.dim() else token for token in items]
        if not any(isinstance(token, list | tuple | torch.Tensor | np.ndarray) for token in tokens):
            return Counter(tokens)
    message = (
        f"The metric F1 was given {described(values)}: expected one flat sequence of tokens. Give one answer at a "
        "time; for scores of classes use Accuracy or topk."
    )
    raise ModelError(message)
