"""Images that a text file lists with their classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, final

from inc_torch.core.errors import ArtifactError
from inc_torch.core.optional import require
from inc_torch.data._dataset import REGISTRY, Keeps, Samples, Transform

__all__ = ["ImagenetRaw", "read_image"]

DEFAULT_LIST = "val.txt"


def read_image(path: Path, feature: str) -> Any:  # noqa: ANN401  a PIL image
    """Read an image with three colours.

    Raises:
        ArtifactError: There is none.
        MissingPackageError: Pillow is not installed.
    """
    require("PIL", "vision", feature)
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        message = f"{os.fspath(path)!r} cannot be read as an image: {error}. Check the folder that {feature} was given."
        raise ArtifactError(message) from error


@final
@REGISTRY.register("ImagenetRaw", summary="images that a text file lists with their classes")
class ImagenetRaw(Samples):
    """Images below ``data_path``, listed with their classes in a text file: ``name.jpg 17`` in each line.

    Args:
        data_path: The folder.
        image_list: The text file; None is ``val.txt`` in the folder.
        transform: Maps each sample ``(PIL image, class)``.
        filter: Says what is kept.

    Raises:
        ArtifactError: The file is missing, or a line is of another form.
        MissingPackageError: Pillow is not installed; it comes with torchvision.

    Source: INC 2.6.1 ``ImagenetRaw``.
    """

    def __init__(
        self,
        data_path: str | os.PathLike[str],
        image_list: str | os.PathLike[str] | None = None,
        transform: Transform | None = None,
        filter: Keeps | None = None,  # noqa: A002  INC's name
    ) -> None:
        super().__init__(transform, filter)
        self._folder = Path(data_path)
        self._entries = _read_list(self._folder / DEFAULT_LIST if image_list is None else Path(image_list))

    def count(self) -> int:  # noqa: D102
        return len(self._entries)

    def sample(self, index: int) -> Any:  # noqa: ANN401, D102
        name, label = self._entries[index]
        return read_image(self._folder / name, "ImagenetRaw"), label


def _read_list(path: Path) -> list[tuple[str, int]]:
    if not path.is_file():
        message = (
            f"{os.fspath(path)!r} does not exist: expected a text file with an image and its class in each line. Give "
            "it as image_list."
        )
        raise ArtifactError(message)
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, label = line.rpartition(" ")
        if line.strip() and not (name and label.isdecimal()):
            message = f"{os.fspath(path)!r}, line {number}: got {line!r}, expected an image and its class: 'a.jpg 17'."
            raise ArtifactError(message)
        if line.strip():
            entries.append((name, int(label)))
    return entries
