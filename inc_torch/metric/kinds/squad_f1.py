"""Overlap of answers with right ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from inc_torch.core.errors import ModelError
from inc_torch.metric._adapter import TorchmetricsMetric
from inc_torch.metric._base import REGISTRY
from inc_torch.metric._texts import text_pairs

__all__ = ["SquadF1"]


@final
@REGISTRY.register("SquadF1", summary="overlap of the words of answers with right ones, 0 to 100")
class SquadF1(TorchmetricsMetric):
    """The F1 of words between an answer and the right one, the mean over all questions, from 0 to 100.

        f1(answer) = max over right answers of 2 * common words / (words in answer + words in right answer)

    Words are compared in lower case, without punctuation and the articles "a", "an" and "the".

    ``preds`` are texts, ``labels`` a text for each, or a list of several right ones; or both are the dicts of SQuAD,
    ``{"id": ..., "prediction_text": ...}`` and ``{"id": ..., "answers": {"text": [...]}}``.

    Raises:
        ConfigError: By `result`: nothing was counted.
        MissingPackageError: torchmetrics is not installed.
        ModelError: By `update`: no texts were given, or their number differs.

    Example:
        >>> metric = SquadF1()
        >>> metric.update(["The cat.", "in 1976"], ["cat", ["1976", "the year 1976"]])
        >>> round(metric.result(), 2)
        83.33

    Source: Rajpurkar et al., SQuAD, arXiv:1606.05250, and its script for version 1. The name is that of INC 2.6.1,
    which has it for TensorFlow and ONNX only. `F1` here is the overlap of tokens as they are, from 0 to 1.
    """

    def update(self, preds: object, labels: object) -> None:
        given = _read(preds, labels) if _are_mappings(preds) and _are_mappings(labels) else (preds, labels)
        texts, answers = text_pairs(*given, "SquadF1")
        predicted = [{"id": str(place), "prediction_text": text} for place, text in enumerate(texts)]
        right = [{"id": str(place), "answers": {"text": answer}} for place, answer in enumerate(answers)]
        for metric in self._metrics:
            metric.update(predicted, right)
        self._count += len(texts)

    def _build(self) -> list[Any]:
        from torchmetrics.text import SQuAD

        return [SQuAD(sync_on_compute=False)]

    def _number(self, value: Mapping[str, torch.Tensor]) -> float:
        return float(value["f1"])


def _are_mappings(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, Mapping) for value in values)


def _read(preds: Any, labels: Any) -> tuple[list[Any], list[Any]]:  # noqa: ANN401  sequences of mappings
    """Answers and right ones from SQuAD's dicts; a question without an answer has an empty one."""
    try:
        texts = {answer["id"]: answer["prediction_text"] for answer in preds}
        return [texts.get(question["id"], "") for question in labels], [item["answers"]["text"] for item in labels]
    except KeyError as error:
        message = (
            f"The metric SquadF1 was given a dict without {error}: expected {{'id', 'prediction_text'}} as predictions "
            "and {'id', 'answers': {'text'}} as labels. Name the entries so, or give texts."
        )
        raise ModelError(message) from None
