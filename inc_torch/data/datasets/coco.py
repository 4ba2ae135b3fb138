"""Photographs with boxes around objects, in the files of COCO."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch.utils.data import default_collate

from inc_torch.core.errors import ArtifactError
from inc_torch.data._dataset import REGISTRY, Keeps, Samples, Transform
from inc_torch.data.datasets.imagenet import read_image

__all__ = ["COCONpy", "COCORaw"]

Label = tuple[Any, list[str], Any, int]


class _Coco(Samples):
    """Images and their labels ``(boxes, names, classes, image id)``; a box is (top, left, bottom, right) in [0, 1]."""

    FOLDER: ClassVar[str]

    def __init__(self, root: str | os.PathLike[str], folder: str, anno_dir: str, given: tuple[Any, Any]) -> None:
        super().__init__(*given)
        self._folder = Path(root) / folder
        self._entries = _read_annotations(Path(root) / anno_dir)

    def count(self) -> int:
        return len(self._entries)

    def sample(self, index: int) -> Any:  # noqa: ANN401
        name, label = self._entries[index]
        return self._read(name), label

    def is_kept(self, index: int) -> bool:
        """Filters see the label alone, so that no image is read for them."""
        keeps = self.filter
        return keeps is None or bool(keeps(None, self._entries[index][1]))

    @staticmethod
    def collate(samples: list[Any]) -> tuple[Any, tuple[list[Any], ...]]:
        """A batch: images together if they have one shape, and a list of each part of the labels."""
        images = [
            image if isinstance(image, torch.Tensor) else torch.as_tensor(np.array(image)) for image, _ in samples
        ]
        labels = tuple(list(part) for part in zip(*(label for _, label in samples), strict=True))
        return default_collate(images) if len({image.shape for image in images}) == 1 else images, labels

    @abstractmethod
    def _read(self, name: str) -> Any:  # noqa: ANN401
        """Read the image of that name."""


@final
@REGISTRY.register("COCORaw", summary="photographs with boxes around objects")
class COCORaw(_Coco):
    """Photographs with boxes around objects, as COCO has them.

    Args:
        root: The folder of both.
        img_dir: The folder of the images in it.
        anno_dir: The JSON file of the boxes in it.
        transform: Maps each sample ``(PIL image, (boxes, names, classes, image id))``. A box is (top, left, bottom,
            right), in shares of the image.
        filter: Says what is kept, such as ``LabelBalance``; images are not read for it, it is given None.

    Raises:
        ArtifactError: The JSON file is missing or another one.
        MissingPackageError: Pillow is not installed; it comes with torchvision.

    Source: INC 2.6.1 ``COCORaw``; differs in that pycocotools is not needed, and images without boxes are kept.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        img_dir: str = "val2017",
        anno_dir: str = "annotations/instances_val2017.json",
        transform: Transform | None = None,
        filter: Keeps | None = None,  # noqa: A002  INC's name
    ) -> None:
        super().__init__(root, img_dir, anno_dir, (transform, filter))

    def _read(self, name: str) -> Any:  # noqa: ANN401
        return read_image(self._folder / name, "COCORaw")


@final
@REGISTRY.register("COCONpy", summary="the same, with images that were prepared and saved by numpy")
class COCONpy(_Coco):
    """The same with images that were prepared before: an array ``<file name>.npy`` for each.

    Args:
        root: The folder of both.
        npy_dir: The folder of the arrays in it.
        anno_dir: The JSON file of the boxes in it.
        transform: Maps each sample ``(array, (boxes, names, classes, image id))``.
        filter: Says what is kept.

    Raises:
        ArtifactError: A file is missing or another one. Arrays of pickled objects are not opened.

    Source: INC 2.6.1 ``COCONpy``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        npy_dir: str = "val2017",
        anno_dir: str = "annotations/instances_val2017.json",
        transform: Transform | None = None,
        filter: Keeps | None = None,  # noqa: A002  INC's name
    ) -> None:
        super().__init__(root, npy_dir, anno_dir, (transform, filter))

    def _read(self, name: str) -> Any:  # noqa: ANN401
        path = self._folder / f"{name}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            message = f"{os.fspath(path)!r} cannot be read as an array: {error}. Check npy_dir of COCONpy."
            raise ArtifactError(message) from error


def _read_annotations(path: Path) -> list[tuple[str, Label]]:
    """File name and label of each image."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in data["categories"]}
        boxes: dict[int, list[tuple[list[float], int]]] = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            boxes[annotation["image_id"]].append((annotation["bbox"], annotation["category_id"]))
        return [(image["file_name"], _label(image, boxes[image["id"]], names)) for image in data["images"]]
    except FileNotFoundError as error:
        message = f"{os.fspath(path)!r} does not exist: expected the JSON file of boxes. Check root and anno_dir."
        raise ArtifactError(message) from error
    except (ValueError, KeyError, TypeError) as error:
        message = (
            f"{os.fspath(path)!r} is no file of boxes as COCO has them ({error!r}): expected JSON with 'images', "
            "'annotations' and 'categories'."
        )
        raise ArtifactError(message) from error


def _label(image: dict[str, Any], found: list[tuple[list[float], int]], names: dict[int, str]) -> Label:
    height, width = image["height"], image["width"]
    boxes = [[y / height, x / width, (y + h) / height, (x + w) / width] for (x, y, w, h), _ in found]
    classes = [category for _, category in found]
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return array, [names[category] for category in classes], np.array(classes, dtype=np.int64), int(image["id"])
