"""Transforms of samples and of outputs alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import numpy as np
import torch

from inc_torch.core.errors import ConfigError, did_you_mean
from inc_torch.data._transform import REGISTRIES, BaseTransform, Sample, composed

__all__ = ["Cast", "Compose"]


@final
@REGISTRIES["general"].register("Cast", summary="another type of number")
class Cast(BaseTransform):
    """Gives an array or a tensor another type.

    Args:
        dtype: A name of torch, such as ``"float32"``, ``"int64"`` or ``"bfloat16"``.

    Raises:
        ConfigError: There is no such type.

    Example:
        >>> Cast("int64")((torch.tensor([1.7]), 0))
        (tensor([1]), 0)

    Source: INC 2.6.1 ``Cast``.
    """

    def __init__(self, dtype: str = "float32") -> None:
        known = [name for name, value in vars(torch).items() if isinstance(value, torch.dtype)]
        if dtype not in known:
            raise ConfigError.field(
                type(self).__name__, "dtype", dtype, f"a type of torch such as 'float32'{did_you_mean(dtype, known)}"
            )
        self.dtype = dtype

    def __call__(self, sample: Sample) -> Sample:  # noqa: D102
        image, label = sample
        if isinstance(image, torch.Tensor):
            return image.to(getattr(torch, self.dtype)), label
        return np.asarray(image).astype(self.dtype), label


@final
@REGISTRIES["general"].register("Compose", summary="one after another")
class Compose(BaseTransform):
    """Several transforms, one after another.

    Args:
        transform_list: They, in order.

    Example:
        >>> Compose([Cast("int64"), Cast("float64")])((torch.tensor([1.7]), 0))
        (tensor([1.], dtype=torch.float64), 0)

    Source: INC 2.6.1 ``Compose``.
    """

    def __init__(self, transform_list: Iterable[Callable[[Any], Any]]) -> None:
        self.transform_list = list(transform_list)
        self._apply = composed(self.transform_list)

    def __call__(self, sample: Sample) -> Any:  # noqa: ANN401, D102
        return self._apply(sample)
