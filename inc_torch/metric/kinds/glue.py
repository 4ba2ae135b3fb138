"""The benchmark of language understanding."""

from __future__ import annotations

from typing import Any, final

import torch

from inc_torch.core.errors import ConfigError
from inc_torch.core.user_warning import ignored
from inc_torch.metric._adapter import TorchmetricsMetric
from inc_torch.metric._base import REGISTRY
from inc_torch.metric._values import class_ids, paired

__all__ = ["GLUE"]

CLASSES = {"cola": 2, "mnli": 3, "mnli-mm": 3, "mrpc": 2, "qnli": 2, "qqp": 2, "rte": 2, "sst-2": 2, "wnli": 2}
REGRESSION = "sts-b"
TASKS = (*CLASSES, REGRESSION)


@final
@REGISTRY.register("GLUE", summary="the number that GLUE reports for a task")
class GLUE(TorchmetricsMetric):
    """The number by which a task of GLUE is judged.

    | task | number | range |
    |---|---|---|
    | ``mrpc`` | F1 of class 1 | 0 to 1 |
    | ``cola`` | Matthews' correlation | -1 to 1 |
    | ``sts-b`` | mean of Pearson's and Spearman's correlation | -1 to 1 |
    | all others | accuracy | 0 to 1 |

    ``preds`` are scores of classes or class ids, for ``sts-b`` a number a sample; ``labels`` are ids, or numbers.

    Args:
        task: One of the tasks, in lower case: ``"cola"``, ``"mnli"``, ``"mnli-mm"``, ``"mrpc"``, ``"qnli"``, ``"qqp"``,
            ``"rte"``, ``"sst-2"``, ``"sts-b"``, ``"wnli"``. The hyphen may be missing.

    Raises:
        ConfigError: The task is unknown; or, by `result`, nothing was counted.
        MissingPackageError: torchmetrics is not installed.
        ModelError: By `update`: shapes do not fit.

    Example:
        >>> metric = GLUE("mrpc")
        >>> metric.update([[0.1, 0.9], [0.4, 0.6], [0.8, 0.2]], [1, 0, 0])
        >>> round(metric.result(), 4)
        0.6667

    Source: Wang et al., GLUE, arXiv:1804.07461. The name is that of INC 2.6.1, which has it for ONNX only.
    """

    def __init__(self, task: str = "mrpc") -> None:
        known = {name.replace("-", ""): name for name in TASKS}
        name = known.get(str(task).replace("-", ""))
        if name is None:
            raise ConfigError.field(type(self).__name__, "task", task, f"one of {', '.join(map(repr, TASKS))}")
        self.task = name
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.task!r})"

    def update(self, preds: object, labels: object) -> None:
        is_regression = self.task == REGRESSION
        given, expected = (paired if is_regression else class_ids)(preds, labels, "GLUE")
        kind = torch.float32 if is_regression else torch.int64
        for metric in self._metrics:
            metric.update(given.to(kind), expected.to(kind))
        self._count += len(given)

    def _build(self) -> list[Any]:
        from torchmetrics import classification, regression

        if self.task == REGRESSION:
            with ignored(UserWarning):  # of its memory, as it keeps all samples
                spearman = regression.SpearmanCorrCoef(sync_on_compute=False)
            return [regression.PearsonCorrCoef(sync_on_compute=False), spearman]
        if self.task == "mrpc":
            return [classification.BinaryF1Score(sync_on_compute=False)]
        if self.task == "cola":
            return [classification.BinaryMatthewsCorrCoef(sync_on_compute=False)]
        return [classification.MulticlassAccuracy(CLASSES[self.task], average="micro", sync_on_compute=False)]
