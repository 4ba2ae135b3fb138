"""The loss that a model returns."""

from __future__ import annotations

from typing import ClassVar, final

from inc_torch.metric._base import REGISTRY, BaseMetric
from inc_torch.metric._values import as_tensor, no_sample, sample_count

__all__ = ["Loss"]


@final
@REGISTRY.register("Loss", summary="mean of the losses that the model returns")
class Loss(BaseMetric):
    """The mean of losses, for a model whose output they are; lower is better.

    ``preds`` are losses of any shape, and each counts once. A single number is taken for the mean of its batch, and
    counts for as many samples as the first axis of ``labels`` has.

    Raises:
        ConfigError: By `result`: there was no update.
        ModelError: By `update`: no numbers were given.

    Example:
        >>> metric = Loss()
        >>> metric.update([[1.0], [2.0], [3.0]], [[1], [0], [0]])
        >>> metric.update(6.0, [0])
        >>> metric.result()
        3.0

    Source: INC 2.6.1 ``Loss``; differs in the divisor, which was the size of the first label; labels with one axis were
    an IndexError.
    """

    higher_is_better: ClassVar[bool] = False

    def __init__(self) -> None:
        self.reset()

    def __repr__(self) -> str:
        return "Loss()"

    def reset(self) -> None:
        self._sum = 0.0
        self._count = 0

    def update(self, preds: object, labels: object) -> None:
        losses = as_tensor(preds).double()
        count = sample_count(as_tensor(labels)) if losses.numel() == 1 else losses.numel()
        if count:
            self._sum += float(losses.mean()) * count
        self._count += count

    def result(self) -> float:
        if not self._count:
            raise no_sample(self)
        return self._sum / self._count
