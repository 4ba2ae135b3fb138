"""Transforms that torchvision does. It is imported when one of them is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

from inc_torch.core.errors import ConfigError
from inc_torch.core.made_by_name import made
from inc_torch.core.optional import require
from inc_torch.data._transform import REGISTRIES, BaseTransform, Sample

__all__ = ["CropResize", "CropToBoundingBox", "Normalize", "RandomResizedCrop", "Resize", "TorchvisionTransform"]

PREPROCESS = REGISTRIES["preprocess"]
PLAIN: Final = (
    "CenterCrop",
    "ColorJitter",
    "Pad",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomVerticalFlip",
    "ToPILImage",
    "ToTensor",
)
"""Those whose arguments are torchvision's."""
Size = int | Sequence[int]


class TorchvisionTransform(BaseTransform):
    """The transform of ``torchvision.transforms`` with this name, of the image in a sample.

    Args:
        args: Those that torchvision takes.
        kwargs: Those that torchvision takes.

    Raises:
        ConfigError: It does not take them.
        MissingPackageError: torchvision is not installed.

    Source: INC 2.6.1, which has torchvision do it too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  torchvision's
        name = type(self).__name__
        self._transform = made(f"transform {name!r}", getattr(_torchvision(name), name), args, kwargs)

    def __call__(self, sample: Sample) -> Sample:  # noqa: D102
        image, label = sample
        return self._transform(image), label

    def __repr__(self) -> str:
        return repr(self._transform)


for _name in PLAIN:
    PREPROCESS.register(_name, summary=f"torchvision's {_name}")(
        type(_name, (TorchvisionTransform,), {"__doc__": TorchvisionTransform.__doc__, "__module__": __name__})
    )


@final
@PREPROCESS.register("Resize", summary="another size")
class Resize(TorchvisionTransform):
    """Another size.

    Args:
        size: Of the shorter side, or (height, width).
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.

    Raises:
        ConfigError: Another interpolation.
        MissingPackageError: torchvision is not installed.

    Source: INC 2.6.1 ``Resize``.
    """

    def __init__(self, size: Size, interpolation: str = "bilinear") -> None:
        super().__init__(_size(size), _interpolation(interpolation, "Resize"))


@final
@PREPROCESS.register("RandomResizedCrop", summary="some part, in another size")
class RandomResizedCrop(TorchvisionTransform):
    """Some part of the image, in another size.

    Args:
        size: Of the side, or (height, width).
        scale: Least and greatest share of the image.
        ratio: Least and greatest width by height.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.

    Raises:
        ConfigError: Another interpolation.
        MissingPackageError: torchvision is not installed.

    Source: INC 2.6.1 ``RandomResizedCrop``.
    """

    def __init__(
        self,
        size: Size,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(_size(size), tuple(scale), tuple(ratio), _interpolation(interpolation, "RandomResizedCrop"))


@final
@PREPROCESS.register("Normalize", summary="subtract a mean, divide by a deviation")
class Normalize(TorchvisionTransform):
    """Subtracts ``mean`` and divides by ``std``, channel by channel.

    Args:
        mean: Of each channel, or one for all.
        std: Of each channel, or one for all; not 0.

    Raises:
        ConfigError: A deviation is 0.
        MissingPackageError: torchvision is not installed.

    Source: INC 2.6.1 ``Normalize``.
    """

    def __init__(self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> None:
        if not all(std):
            raise ConfigError.field(type(self).__name__, "std", std, "numbers other than 0")
        super().__init__(list(mean), list(std))


@final
@PREPROCESS.register("CropToBoundingBox", summary="a given part")
class CropToBoundingBox(BaseTransform):
    """A given part of the image.

    Args:
        offset_height: Where it begins from above.
        offset_width: Where it begins from the left.
        target_height: How high it is.
        target_width: How wide it is.

    Raises:
        MissingPackageError: torchvision is not installed.

    Source: INC 2.6.1 ``CropToBoundingBox``.
    """

    def __init__(self, offset_height: int, offset_width: int, target_height: int, target_width: int) -> None:
        self._crop = _torchvision("CropToBoundingBox").functional.crop
        self._part = (offset_height, offset_width, target_height, target_width)

    def __call__(self, sample: Sample) -> Sample:  # noqa: D102
        image, label = sample
        return self._crop(image, *self._part), label


@final
@PREPROCESS.register("CropResize", summary="a given part, in another size")
class CropResize(BaseTransform):
    """A given part of the image, in another size.

    Args:
        x: Where it begins from the left.
        y: Where it begins from above.
        width: How wide it is.
        height: How high it is.
        size: What it becomes: the shorter side, or (height, width).
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.

    Raises:
        ConfigError: Another interpolation.
        MissingPackageError: torchvision is not installed.

    Source: INC 2.6.1 ``CropResize``.
    """

    def __init__(self, x: int, y: int, width: int, height: int, size: Size, interpolation: str = "bilinear") -> None:
        self._functional = _torchvision("CropResize").functional
        self._part = (y, x, height, width)
        self._size = _size(size)
        self._interpolation = _interpolation(interpolation, "CropResize")

    def __call__(self, sample: Sample) -> Sample:  # noqa: D102
        image, label = sample
        part = self._functional.crop(image, *self._part)
        return self._functional.resize(part, self._size, self._interpolation), label


def _torchvision(name: str) -> Any:  # noqa: ANN401  a module without types
    require("torchvision", "vision", f"The transform {name}")
    import torchvision.transforms

    return torchvision.transforms


def _interpolation(name: object, owner: str) -> Any:  # noqa: ANN401  an enumeration of torchvision
    known = {mode.value: mode for mode in _torchvision(owner).InterpolationMode}
    if not isinstance(name, str) or name not in known:
        raise ConfigError.field(owner, "interpolation", name, f"one of {', '.join(map(repr, known))}")
    return known[name]


def _size(size: Size) -> Size:
    return size if isinstance(size, int) else list(size)
