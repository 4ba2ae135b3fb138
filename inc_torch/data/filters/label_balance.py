"""Images with so many objects."""

from __future__ import annotations

from typing import Any, final

from inc_torch.data._filter import REGISTRY, Filter

__all__ = ["LabelBalance"]


@final
@REGISTRY.register("LabelBalance", summary="images with so many boxes")
class LabelBalance(Filter):
    """Keeps images with as many boxes as asked for.

    Args:
        size: How many.

    Example:
        >>> one_box = ([[0.0, 0.0, 1.0, 1.0]], ["cat"], [17], 5)
        >>> LabelBalance(1)(None, one_box), LabelBalance(2)(None, one_box)
        (True, False)

    Source: INC 2.6.1 ``LabelBalance`` for COCORaw.
    """

    def __init__(self, size: int = 1) -> None:
        self.size = size

    def __call__(self, image: object, label: Any) -> bool:  # noqa: ANN401, D102  said in the base class
        del image
        return len(label[0]) == self.size
