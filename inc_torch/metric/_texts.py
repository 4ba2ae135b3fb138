"""Texts and right answers of any kind as lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inc_torch.core.batches import described
from inc_torch.core.errors import ModelError

__all__ = ["text_pairs"]


def text_pairs(preds: object, labels: object, metric: str) -> tuple[list[str], list[list[str]]]:
    """Return predicted texts, and for each the texts that are right.

    Args:
        preds: Texts, or one.
        labels: For each a text, or several that are right; one text or several where ``preds`` is one text.
        metric: Its name, for the message.

    Raises:
        ModelError: They are no texts, their number differs, or nothing is right.

    Example:
        >>> text_pairs(["a", "b"], ["a", ["b", "c"]], "BLEU")
        (['a', 'b'], [['a'], ['b', 'c']])
        >>> text_pairs("a", "b", "BLEU")
        (['a'], [['b']])
    """
    given = [preds] if isinstance(preds, str) else _items(preds)
    expected = [labels] if isinstance(preds, str) else _items(labels)
    texts = [text for text in given if isinstance(text, str)]
    answers = [[answer] if isinstance(answer, str) else _items(answer) for answer in expected]
    right = [[text for text in answer if isinstance(text, str)] for answer in answers]
    if len(texts) == len(given) == len(expected) and all(right) and right == answers:
        return texts, right
    message = (
        f"The metric {metric} was given predictions of type {described(preds)} and labels of type {described(labels)}: "
        "expected as many texts in both, where a label may be a list of several right ones. Turn token ids into text "
        "before, or let prepare do it."
    )
    raise ModelError(message)


def _items(values: object) -> list[object]:
    if isinstance(values, np.ndarray):
        return list(values.tolist())
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
