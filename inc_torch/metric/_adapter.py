"""The base of metrics of INC that torchmetrics computes."""

from __future__ import annotations

from abc import abstractmethod
from statistics import fmean
from typing import Any, ClassVar

from inc_torch.core.optional import require
from inc_torch.metric._base import BaseMetric
from inc_torch.metric._torchmetrics import EXTRA
from inc_torch.metric._values import no_sample

__all__ = ["TorchmetricsMetric"]


class TorchmetricsMetric(BaseMetric):
    """A metric of INC that torchmetrics computes.

    A subclass makes metrics of torchmetrics in `_build`, and brings batches into their form in `update`, which adds to
    ``_count`` what it gave them. Each process measures what it was given itself, as with all metrics here.

    Raises:
        MissingPackageError: torchmetrics, or what it needs for this metric, is not installed.
    """

    COUNTED: ClassVar[str] = "sample"
    """What there must be one of, for the message."""

    def __init__(self) -> None:
        require("torchmetrics", EXTRA, f"The metric {type(self).__name__}")
        self._metrics = self._build()
        self._count = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def reset(self) -> None:
        """Forget everything."""
        for metric in self._metrics:
            metric.reset()
        self._count = 0

    def result(self) -> float:
        """Return the number for all batches since `reset`.

        Raises:
            ConfigError: Nothing was counted.
        """
        if not self._count:
            raise no_sample(self, self.COUNTED)
        return fmean(self._number(metric.compute()) for metric in self._metrics)

    @abstractmethod
    def _build(self) -> list[Any]:
        """Make the metrics, of which `result` is the mean."""

    def _number(self, value: Any) -> float:  # noqa: ANN401  each metric of torchmetrics computes something else
        """What counts of the value that a metric computed."""
        return float(value)
