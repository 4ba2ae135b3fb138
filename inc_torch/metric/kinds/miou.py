"""Overlap of segments."""

from __future__ import annotations

from typing import Any, final

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.metric._adapter import TorchmetricsMetric
from inc_torch.metric._base import REGISTRY
from inc_torch.metric._values import class_ids, is_count

__all__ = ["MeanIoU"]

FEWEST = 2


@final
@REGISTRY.register("mIOU", summary="overlap of segments with right ones, the mean over classes")
class MeanIoU(TorchmetricsMetric):
    """Intersection over union of each class over all pixels, the mean over classes, from 0 to 1.

        iou(class) = pixels in both / pixels in preds or labels

    ``preds`` are class ids shaped like ``labels``, or scores with one axis more, as for `Accuracy`. Pixels whose label
    is no class, such as 255 for the void, are left out; so are classes that occur nowhere.

    Args:
        num_classes: How many classes there are, 2 or more; 21 are those of Pascal VOC.

    Raises:
        ConfigError: ``num_classes`` is out of range; or, by `result`, nothing was counted.
        MissingPackageError: torchmetrics is not installed.
        ModelError: By `update`: shapes do not fit, or a prediction is no class.

    Example:
        >>> metric = MeanIoU(num_classes=3)
        >>> metric.update([[0, 0, 1, 1]], [[0, 1, 1, 255]])
        >>> metric.result()
        0.5

    Source: Everingham et al., The Pascal Visual Object Classes Challenge, 2015. The name is that of INC 2.6.1, which
    has it for TensorFlow and ONNX only.
    """

    COUNTED = "pixel with a class"

    def __init__(self, num_classes: int = 21) -> None:
        if not is_count(num_classes, FEWEST):
            raise ConfigError.field(type(self).__name__, "num_classes", num_classes, f"an integer of {FEWEST} or more")
        self.num_classes = num_classes
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_classes={self.num_classes})"

    def update(self, preds: object, labels: object) -> None:
        given, expected = class_ids(preds, labels, "mIOU")
        has_class = (expected >= 0) & (expected < self.num_classes)
        given, expected = given[has_class].long(), expected[has_class].long()
        if len(given) and not bool(((given >= 0) & (given < self.num_classes)).all()):
            message = (
                f"The metric {self!r} was given predictions from {int(given.min())} to {int(given.max())}: expected "
                f"class ids in [0, {self.num_classes}), or scores. Give it the num_classes of the model."
            )
            raise ModelError(message)
        for metric in self._metrics:
            metric.update(given, expected)
        self._count += len(given)

    def _build(self) -> list[Any]:
        from torchmetrics.classification import MulticlassJaccardIndex

        return [MulticlassJaccardIndex(self.num_classes, validate_args=False, sync_on_compute=False)]
