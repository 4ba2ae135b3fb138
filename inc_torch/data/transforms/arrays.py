"""Transforms of arrays, for which nothing has to be installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import numpy as np
import torch
from torch.nn.functional import interpolate

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.data._transform import REGISTRIES, BaseTransform, Sample

__all__ = ["AlignImageChannel", "ResizeWithRatio", "ToArray", "Transpose"]

_GREY, _COLOURS = 1, 3
_IMAGE_RANK: Final = 3
_LUMA: Final = (0.299, 0.587, 0.114)
"""How bright red, green and blue are, by ITU-R BT.601."""


@final
@REGISTRIES["preprocess"].register("ToArray", summary="an array of numpy")
class ToArray(BaseTransform):
    """Makes an array of an image or a tensor.

    Source: INC 2.6.1 ``ToArray``.
    """

    def __call__(self, sample: Sample) -> Sample:  # noqa: D102
        image, label = sample
        return np.array(image), label


@final
@REGISTRIES["preprocess"].register("Transpose", summary="axes in another order")
class Transpose(BaseTransform):
    """Puts axes in another order.

    Args:
        perm: Numbers of the axes, in their new order.

    Example:
        >>> Transpose([2, 0, 1])((np.zeros((4, 5, 3)), 0))[0].shape
        (3, 4, 5)

    Source: INC 2.6.1 ``Transpose``.
    """

    def __init__(self, perm: Sequence[int]) -> None:
        self.perm = tuple(perm)

    def __call__(self, sample: Sample) -> Sample:  # noqa: D102
        image, label = sample
        if isinstance(image, torch.Tensor):
            return image.permute(*self.perm), label
        return np.transpose(np.asarray(image), self.perm), label


@final
@REGISTRIES["preprocess"].register("AlignImageChannel", summary="one colour or three")
class AlignImageChannel(BaseTransform):
    """Gives images of shape (height, width) or (height, width, channels) as many channels as asked for.

    Args:
        dim: 1 or 3. Colours become grey by their brightness, grey is repeated, a fourth channel is dropped.

    Raises:
        ConfigError: Another number.

    Example:
        >>> AlignImageChannel(3)((np.ones((4, 5)), 0))[0].shape
        (4, 5, 3)

    Source: INC 2.6.1 ``AlignImageChannel``.
    """

    def __init__(self, dim: int = _COLOURS) -> None:
        if dim not in (_GREY, _COLOURS):
            raise ConfigError.field(type(self).__name__, "dim", dim, f"{_GREY} or {_COLOURS}")
        self.dim = dim

    def __call__(self, sample: Sample) -> Sample:  # noqa: D102
        image, label = sample
        array = _with_channels(image, "AlignImageChannel")
        channels = array.shape[-1]
        if channels == self.dim:
            return array, label
        if channels == _GREY:
            return np.repeat(array, self.dim, axis=-1), label
        if channels < _COLOURS:
            message = (
                f"AlignImageChannel got an image of shape {array.shape}: expected 1, 3 or 4 channels, which are last."
            )
            raise ModelError(message)
        colours = array[..., :_COLOURS]
        return colours if self.dim == _COLOURS else (colours @ np.array(_LUMA))[..., None].astype(array.dtype), label


@final
@REGISTRIES["preprocess"].register("ResizeWithRatio", summary="another size, in the same proportions")
class ResizeWithRatio(BaseTransform):
    """Makes the shorter side as long as asked for, but the longer one no longer than a bound, in the same proportions.

    Args:
        min_dim: Length of the shorter side.
        max_dim: Bound of the longer side.
        padding: Whether a square of ``max_dim`` is made around the image, which stands in its middle.
        constant_value: What is in the square besides.

    Example:
        >>> ResizeWithRatio(4, 6)((np.ones((10, 20, 3)), 0))[0].shape
        (3, 6, 3)
        >>> ResizeWithRatio(4, 6, padding=True)((np.ones((10, 20, 3)), 0))[0].shape
        (6, 6, 3)

    Source: INC 2.6.1 ``ResizeWithRatio``; differs in that torch does it, by bilinear interpolation, instead of OpenCV.
    """

    def __init__(
        self, min_dim: int = 800, max_dim: int = 1365, padding: bool = False, constant_value: float = 0
    ) -> None:
        self.min_dim, self.max_dim = min_dim, max_dim
        self.padding, self.constant_value = padding, constant_value

    def __call__(self, sample: Sample) -> Sample:  # noqa: D102
        image, label = sample
        array = _with_channels(image, "ResizeWithRatio")
        height, width = array.shape[:2]
        scale = min(self.min_dim / min(height, width), self.max_dim / max(height, width))
        size = round(height * scale), round(width * scale)
        planes = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None].float()
        planes = interpolate(planes, size, mode="bilinear", align_corners=False)
        resized = planes[0].permute(1, 2, 0).numpy()
        if np.issubdtype(array.dtype, np.integer):
            resized = resized.round()
        return self._padded(resized.astype(array.dtype)), label

    def _padded(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not self.padding:
            return image
        free = [self.max_dim - length for length in image.shape[:2]]
        return np.pad(
            image, [*((gap // 2, gap - gap // 2) for gap in free), (0, 0)], constant_values=self.constant_value
        )


def _with_channels(image: object, owner: str) -> np.ndarray[Any, Any]:
    array = np.asarray(image)
    if array.ndim == _IMAGE_RANK - 1:
        array = array[..., None]
    if array.ndim != _IMAGE_RANK:
        message = f"{owner} got an image of shape {array.shape}: expected (height, width) or (height, width, channels)."
        raise ModelError(message)
    return array
