"""Scores of two classes."""

from __future__ import annotations

from typing import final

import torch

from inc_torch.core.errors import ConfigError
from inc_torch.metric._base import REGISTRY, BaseMetric
from inc_torch.metric._values import no_sample, paired

__all__ = ["ROC"]

TASKS = ("dlrm", "dien", "wide_deep")
VALUES = ("accuracy", "auc")


@final
@REGISTRY.register("ROC", summary="accuracy of rounded scores, or the area under the curve")
class ROC(BaseMetric):
    """Accuracy of scores rounded at 0.5; despite the name, which is INC's, no area unless ``value="auc"``.

        accuracy = mean(round(score) == label)
        auc      = P(score of a positive > score of a negative) + P(equal) / 2

    ``preds`` are scores in [0, 1], ``labels`` 0 or 1, of one shape but for axes of length 1. The score 0.5 itself is
    rounded to 0.

    Args:
        task: The recommendation model, one of ``"dlrm"``, ``"dien"`` and ``"wide_deep"``; all are measured in one way.
        value: ``"accuracy"`` as INC, or ``"auc"``, the area under the receiver operating characteristic.

    Raises:
        ConfigError: An argument is unknown; or, by `result`, nothing was counted, or for ``"auc"`` only one class.
        ModelError: By `update`: shapes differ.

    Example:
        >>> accuracy, area = ROC("dlrm"), ROC("dlrm", value="auc")
        >>> for metric in (accuracy, area):
        ...     metric.update([0.9, 0.2, 0.6, 0.4], [1, 0, 0, 1])
        >>> accuracy.result(), area.result()
        (0.5, 0.75)

    Source: INC 2.6.1 ``ROC``; Hanley and McNeil, The Meaning and Use of the Area under a ROC Curve, 1982.
    """

    def __init__(self, task: str = "dlrm", value: str = "accuracy") -> None:
        for name, given, known in (("task", task, TASKS), ("value", value, VALUES)):
            if given not in known:
                raise ConfigError.field(type(self).__name__, name, given, f"one of {', '.join(map(repr, known))}")
        self.task = task
        self.value = value
        self.reset()

    def __repr__(self) -> str:
        return f"ROC(task={self.task!r}, value={self.value!r})"

    def reset(self) -> None:
        self._scores: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def update(self, preds: object, labels: object) -> None:
        scores, truth = paired(preds, labels, "ROC")
        self._scores.append(scores.double())
        self._labels.append(truth.double())

    def result(self) -> float:
        if not sum(map(len, self._scores)):
            raise no_sample(self)
        scores, labels = torch.cat(self._scores), torch.cat(self._labels)
        if self.value == "auc":
            return _area(scores, labels > 0)
        return float((scores.round() == labels).double().mean())


def _area(scores: torch.Tensor, is_positive: torch.Tensor) -> float:
    """From the ranks of the positives; equal scores share the mean of their ranks."""
    positives = int(is_positive.sum())
    negatives = len(scores) - positives
    if not positives or not negatives:
        message = (
            f"ROC with value='auc' was given {positives} positives and {negatives} negatives: expected at least one of "
            "each. Evaluate more samples, or use value='accuracy'."
        )
        raise ConfigError(message)
    _, group, sizes = torch.unique(scores, return_inverse=True, return_counts=True)
    last_ranks = sizes.cumsum(0)
    ranks = last_ranks.double() - (sizes - 1).double() / 2
    rank_sum = float(ranks[group][is_positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
