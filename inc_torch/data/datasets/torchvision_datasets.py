"""Data sets that torchvision reads. It is imported when one of them is made."""

from __future__ import annotations

import os
from typing import Any

from inc_torch.core.errors import ArtifactError
from inc_torch.core.optional import require
from inc_torch.data._dataset import REGISTRY, Keeps, Samples, Transform

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "ImageFolder"]

Path = str | os.PathLike[str]


class _OfTorchvision(Samples):
    """One of torchvision's, under a filter and a transform of samples."""

    def __init__(self, root: Path, transform: Transform | None, keeps: Keeps | None, **options: Any) -> None:  # noqa: ANN401
        super().__init__(transform, keeps)
        name = type(self).__name__
        require("torchvision", "vision", f"The data set {name}")
        import torchvision.datasets

        try:
            self.given = getattr(torchvision.datasets, name)(root, **options)
        except (RuntimeError, FileNotFoundError) as error:
            message = f"The data set {name} is not in {os.fspath(root)!r}: {error}{self._way_out()}"
            raise ArtifactError(message) from error

    def _way_out(self) -> str:
        return ""

    def count(self) -> int:
        return len(self.given)

    def sample(self, index: int) -> Any:  # noqa: ANN401
        return self.given[index]


class _Downloaded(_OfTorchvision):
    """One that torchvision can fetch.

    Args:
        root: The folder.
        train: The part for training, not the one for tests.
        download: Fetch the files if they are not there; here False unless it is asked for.
        transform: Maps each sample ``(PIL image, class)``.
        filter: Says what is kept.

    Raises:
        ArtifactError: The files are not there.
        MissingPackageError: torchvision is not installed.
    """

    def __init__(
        self,
        root: Path,
        train: bool = False,
        transform: Transform | None = None,
        filter: Keeps | None = None,  # noqa: A002  INC's name
        download: bool = False,
    ) -> None:
        super().__init__(root, transform, filter, train=train, download=download)

    def _way_out(self) -> str:
        return f" As the data set {type(self).__name__} of inc_torch, that is download: true in a file of settings."


@REGISTRY.register("CIFAR10", summary="small photographs of 10 classes")
class CIFAR10(_Downloaded):
    """Small photographs of 10 classes; arguments and errors are those of the base class.

    Source: INC 2.6.1 ``CIFAR10``; differs in that nothing is downloaded unless it is asked for.
    """


@REGISTRY.register("CIFAR100", summary="small photographs of 100 classes")
class CIFAR100(_Downloaded):
    """Small photographs of 100 classes; arguments and errors are those of the base class.

    Source: INC 2.6.1 ``CIFAR100``; differs in that nothing is downloaded unless it is asked for.
    """


@REGISTRY.register("MNIST", summary="digits")
class MNIST(_Downloaded):
    """Digits; arguments and errors are those of the base class.

    Source: INC 2.6.1 ``MNIST``; differs in that nothing is downloaded unless it is asked for.
    """


@REGISTRY.register("FashionMNIST", summary="clothes")
class FashionMNIST(_Downloaded):
    """Clothes; arguments and errors are those of the base class.

    Source: INC 2.6.1 ``FashionMNIST``; differs in that nothing is downloaded unless it is asked for.
    """


@REGISTRY.register("ImageFolder", summary="a folder of images for each class")
class ImageFolder(_OfTorchvision):
    """Images in folders that are named after their classes, ``root/class/image.jpg``.

    Args:
        root: The folder of the folders.
        transform: Maps each sample ``(PIL image, number of the class)``.
        filter: Says what is kept.

    Raises:
        ArtifactError: There is no image.
        MissingPackageError: torchvision is not installed.

    Source: INC 2.6.1 ``ImageFolder``.
    """

    def __init__(
        self,
        root: Path,
        transform: Transform | None = None,
        filter: Keeps | None = None,  # noqa: A002  INC's name
    ) -> None:
        super().__init__(root, transform, filter)
