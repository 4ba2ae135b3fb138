"""Shares of right answers."""

from __future__ import annotations

from typing import final

import torch

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.metric._base import REGISTRY, BaseMetric
from inc_torch.metric._tally import Tally
from inc_torch.metric._values import as_tensor, class_ids, is_count, no_sample, sample_count

__all__ = ["Accuracy", "TopK"]

MATRIX = 2


class _Share(BaseMetric):
    """Hits over all that was counted."""

    def __init__(self) -> None:
        self.reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def samples(self) -> int:
        """How many samples were counted."""
        return self._tally.samples

    def bound(self, remaining: int) -> float:
        """Return the greatest `result` after ``remaining`` more samples: ``(hits + more) / (counted + more)``.

        Samples to come are taken to have as many elements as those so far; where these differ, the bound is 1.
        """
        more = self._tally.elements_in(remaining)
        return 1.0 if more is None else self._share(more)

    def reset(self) -> None:
        self._hits = 0
        self._tally = Tally()

    def result(self) -> float:
        return self._share()

    def _share(self, more: int = 0) -> float:
        """The share of hits with ``more`` of them."""
        total = self._tally.elements + more
        if not total:
            raise no_sample(self)
        return (self._hits + more) / total

    def _count(self, hits: torch.Tensor, samples: int) -> None:
        self._hits += int(hits.sum())
        self._tally.add(hits.numel(), samples)


@final
@REGISTRY.register("topk", summary="share of samples whose class is among the k with the greatest scores")
class TopK(_Share):
    """The share of samples whose label is among the ``k`` classes with the greatest scores; of equal ones the first.

    ``preds`` are scores [samples, classes], or [classes] of one sample; ``labels`` class ids [samples], or one-hot
    rows shaped like ``preds``. A score that is NaN is never a hit.

    Args:
        k: Integer of 1 or more.

    Raises:
        ConfigError: ``k`` is out of range; or, by `result`, nothing was counted.
        ModelError: By `update`: shapes do not fit, or a label is no class.

    Example:
        >>> metric = TopK(k=2)
        >>> metric.update([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], [2, 2])
        >>> metric.result()
        0.5

    Source: INC 2.6.1 ``topk``; differs in that no sample at all is an error, not 0.
    """

    def __init__(self, k: int = 1) -> None:
        if not is_count(k):
            raise ConfigError.field(type(self).__name__, "k", k, "an integer of 1 or more")
        self.k = k
        super().__init__()

    def __repr__(self) -> str:
        return f"TopK(k={self.k})"

    def update(self, preds: object, labels: object) -> None:
        scores, classes = as_tensor(preds), as_tensor(labels)
        if classes.shape == scores.shape and scores.shape[-1:] > (1,):
            classes = classes.argmax(-1)
        scores = scores[None] if scores.dim() == 1 else scores
        classes = classes.reshape(-1).long()
        _check_classes(scores, classes)
        own = scores.gather(1, classes[:, None])
        places = torch.arange(scores.shape[1])
        is_before = (scores > own) | ((scores == own) & (places < classes[:, None]))
        self._count((is_before.sum(1) < self.k) & ~own[:, 0].isnan(), len(classes))


@final
@REGISTRY.register("Accuracy", summary="share of right class ids")
class Accuracy(_Share):
    """The share of right answers.

    - ``preds`` with one axis more than ``labels`` are scores; their argmax is compared. The classes are on axis 1, or
      on the last one where only that gives the labels' shape.
    - Of equal shapes, but for axes of length 1, both are class ids, or several yes-or-no answers a sample, and
      every element counts.

    Raises:
        ConfigError: By `result`: nothing was counted.
        ModelError: By `update`: shapes do not fit, or scores were given where ids are expected.

    Example:
        >>> metric = Accuracy()
        >>> metric.update([[0.1, 0.9], [0.8, 0.2]], [1, 1])
        >>> metric.update([1, 0], [1, 0])
        >>> metric.result()
        0.75

    Source: INC 2.6.1 ``Accuracy``; differs in that scores in the place of ids are an error, not 0.
    """

    def update(self, preds: object, labels: object) -> None:
        ids, expected = class_ids(preds, labels, "Accuracy")
        self._count(ids == expected, sample_count(as_tensor(labels)))


def _check_classes(scores: torch.Tensor, classes: torch.Tensor) -> None:
    """Refuse labels that do not fit ``scores``."""
    count = scores.shape[-1]
    fits = scores.dim() == MATRIX and len(classes) == len(scores)
    if fits and bool(((classes >= 0) & (classes < count)).all()):
        return
    found = f" from {int(classes.min())} to {int(classes.max())}" if len(classes) else ""
    message = (
        f"The metric topk was given scores of shape {list(scores.shape)} and {len(classes)} labels{found}: expected "
        f"scores [samples, classes] and a label in [0, {count}) for each sample. Reshape them, or let prepare do it."
    )
    raise ModelError(message)
