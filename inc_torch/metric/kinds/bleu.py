"""Likeness of texts to translations."""

from __future__ import annotations

from typing import Any, final

import torch

from inc_torch.core.optional import require
from inc_torch.metric._adapter import TorchmetricsMetric
from inc_torch.metric._base import REGISTRY
from inc_torch.metric._texts import text_pairs
from inc_torch.metric._torchmetrics import EXTRA

__all__ = ["BLEU"]

PERCENT = 100


@final
@REGISTRY.register("BLEU", summary="likeness of texts to translations, 0 to 100")
class BLEU(TorchmetricsMetric):
    """The likeness of texts to translations, of a whole corpus, from 0 to 100.

        precision(n) = n-grams of preds that a label has / n-grams of preds, of the whole corpus
        brevity      = min(1, exp(1 - words in labels / words in preds))
        bleu         = 100 * brevity * (precision(1) * ... * precision(4)) ** (1 / 4)

    ``preds`` are texts, ``labels`` a text for each, or a list of several right ones. They are cut into words as
    sacreBLEU's ``"intl"`` cuts them, upper case counts. For another cut name ``SacreBLEUScore`` of torchmetrics, whose
    range is 0 to 1.

    Raises:
        ConfigError: By `result`: nothing was counted.
        MissingPackageError: torchmetrics or regex is not installed.
        ModelError: By `update`: no texts were given, or their number differs.

    Example:
        >>> metric = BLEU()
        >>> metric.update(["the cat sat on the mat"], ["the cat sat on a mat"])
        >>> round(metric.result(), 2)
        53.73

    Source: Papineni et al., BLEU, ACL 2002; Post, A Call for Clarity in Reporting BLEU Scores, arXiv:1804.08771. The
    name is that of INC 2.6.1, which has it for TensorFlow and ONNX only. Nothing is smoothed: a corpus without a common
    n-gram of 4 words has 0.
    """

    def update(self, preds: object, labels: object) -> None:
        texts, translations = text_pairs(preds, labels, "BLEU")
        for metric in self._metrics:
            metric.update(texts, translations)
        self._count += len(texts)

    def _build(self) -> list[Any]:
        require("regex", EXTRA, "The metric BLEU")
        from torchmetrics.text import SacreBLEUScore

        return [SacreBLEUScore(tokenize="intl", sync_on_compute=False)]

    def _number(self, value: torch.Tensor) -> float:
        return PERCENT * float(value)
