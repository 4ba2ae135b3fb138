"""Mean errors of numbers."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from inc_torch.core.errors import ConfigError
from inc_torch.metric._base import REGISTRY, BaseMetric
from inc_torch.metric._tally import Tally
from inc_torch.metric._values import as_tensor, no_sample, paired, sample_count

__all__ = ["MAE", "MSE", "RMSE"]


class _MeanDifference(BaseMetric):
    """The mean of an error over all elements of all batches, in float64.

    Args:
        compare_label: False compares with the predictions of the float model instead of the labels; who evaluates gives
            them to `update` as ``labels`` (``reference`` of `inc_torch.core.evaluation.evaluate`). The float model
            itself then has the error 0, so a goal has to be absolute.

    Raises:
        ConfigError: ``compare_label`` is no bool.
    """

    higher_is_better: ClassVar[bool] = False

    def __init__(self, compare_label: bool = True) -> None:
        if compare_label not in (True, False):
            raise ConfigError.field(type(self).__name__, "compare_label", compare_label, "True or False")
        self.compare_label = compare_label
        self.reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(compare_label={self.compare_label})"

    @property
    def samples(self) -> int:
        """How many samples were counted."""
        return self._tally.samples

    def bound(self, remaining: int) -> float:
        """Return the least `result` after ``remaining`` more samples, all of them without an error.

        Samples to come are taken to have as many elements as those so far; where these differ, the bound is 0.
        """
        more = self._tally.elements_in(remaining)
        return 0.0 if more is None else self._mean(more)

    def reset(self) -> None:
        self._sum = 0.0
        self._tally = Tally()

    def update(self, preds: object, labels: object) -> None:
        truth = as_tensor(labels)
        given, expected = paired(preds, truth, type(self).__name__)
        self._sum += float(self._errors(given.double() - expected.double()).sum())
        self._tally.add(given.numel(), sample_count(truth))

    def result(self) -> float:
        return self._mean()

    def _mean(self, more: int = 0) -> float:
        """The mean with ``more`` elements without an error."""
        count = self._tally.elements + more
        if not count:
            raise no_sample(self)
        return self._sum / count

    def _errors(self, differences: torch.Tensor) -> torch.Tensor:
        return differences.square()


@REGISTRY.register("MSE", summary="mean squared error")
class MSE(_MeanDifference):
    """``mean((pred - label)**2)`` over all elements of equal shapes; lower is better.

    Args:
        compare_label: False compares with the float model's predictions instead of labels, see ``reference`` of
            `inc_torch.core.evaluation.evaluate`.

    Raises:
        ConfigError: ``compare_label`` is no bool; or, by `result`, nothing was counted.
        ModelError: By `update`: shapes differ.

    Example:
        >>> metric = MSE()
        >>> metric.update([1.0, 2.0], [1.0, 4.0])
        >>> metric.result()
        2.0

    Source: INC 2.6.1 ``MSE``; differs in that tensors are taken.
    """


@REGISTRY.register("RMSE", summary="root of the mean squared error")
class RMSE(_MeanDifference):
    """The root of `MSE`, with the same arguments and errors; lower is better.

    Example:
        >>> metric = RMSE()
        >>> metric.update([3.0, 0.0], [0.0, 3.0])
        >>> metric.result()
        3.0

    Source: INC 2.6.1 ``RMSE``; differs in that tensors are taken.
    """

    def _mean(self, more: int = 0) -> float:
        return math.sqrt(super()._mean(more))


@REGISTRY.register("MAE", summary="mean absolute error")
class MAE(_MeanDifference):
    """``mean(|pred - label|)``, with the arguments and errors of `MSE`; lower is better.

    Example:
        >>> metric = MAE()
        >>> metric.update([1.0, 2.0], [1.0, 4.0])
        >>> metric.result()
        1.0

    Source: INC 2.6.1 ``MAE``; differs in that tensors are taken.
    """

    def _errors(self, differences: torch.Tensor) -> torch.Tensor:
        return differences.abs()
