"""Labels that count from another number."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from inc_torch.data._transform import REGISTRIES, BaseTransform, Sample

__all__ = ["LabelShift"]


@final
@REGISTRIES["postprocess"].register("LabelShift", summary="subtract a number from labels")
class LabelShift(BaseTransform):
    """Subtracts a number from labels, as where those of the data begin with 1 and those of the model with 0.

    Args:
        label_shift: The number.

    Example:
        >>> LabelShift(1)(("output", [1, 5]))
        ('output', [0, 4])

    Source: INC 2.6.1 ``LabelShift``.
    """

    def __init__(self, label_shift: int = 0) -> None:
        self.label_shift = label_shift

    def __call__(self, sample: Sample) -> Sample:  # noqa: D102
        output, label = sample
        return output, self._shifted(label)

    def _shifted(self, label: Any) -> Any:  # noqa: ANN401  a number, an array, a tensor, or lists of them
        if isinstance(label, list | tuple):
            return type(label)(map(self._shifted, label))
        return label - self.label_shift if not isinstance(label, str) else np.int64(label) - self.label_shift
