"""Precision of boxes around objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.core.optional import require
from inc_torch.metric._adapter import TorchmetricsMetric
from inc_torch.metric._base import REGISTRY
from inc_torch.metric._torchmetrics import EXTRA
from inc_torch.metric._values import as_tensor

__all__ = ["MAP", "CocoMAP", "CocoMAPv2", "VocMAP"]

HALF, COCO_OVERLAPS = 0.5, "0.5:0.05:0.95"
AREA, VOC_POINTS, COCO_POINTS = 0, 11, 101
FINE = 1000
"""Points that stand for the area. The curve falls from 1 at most, so their mean is off by 1 / (2 * FINE) at most."""

OUTPUTS = ("boxes", "scores", "classes")
WITH_COUNT = ("num_detections", *OUTPUTS)
ABSENT = -1


@REGISTRY.register("mAP", summary="mean average precision of boxes that overlap right ones by a half")
class MAP(TorchmetricsMetric):
    """The precision of boxes, averaged over recall, the mean over classes and over overlaps, from 0 to 1.

        average_precision(class, overlap) = integral over recall r in [0, 1] of (best precision at recall >= r)
        mAP                               = mean of average_precision over classes in labels, and over overlaps

    In the order of its score, a box is right if a box of its class in the labels, which none before it took, overlaps
    it (intersection over union) by at least the overlap that is asked for. The 100 best boxes of an image count.

    A box is two opposite corners, in the same unit in predictions and labels. Both are given as

    - lists with a dict for each image, as torchvision's models return: ``boxes``, ``scores`` and ``labels``, and
      ``boxes`` and ``labels``;
    - or INC's tuples, ``(boxes, scores, classes)``, before them ``num_detections`` where fewer rows of an image count,
      and ``(boxes, names, classes, image_ids)``. Each has an entry for each image. Names count where ``classes`` is
      empty, ids of images never.

    Args:
        anno_path: A YAML file with the id of each name of a class; needed where labels have names only.
        iou_thrs: The overlap, in (0, 1], or several as ``"first:step:last"``.
        map_points: 0 is the area under the curve, 11 or 101 the mean at so many points of recall.

    Raises:
        ConfigError: An argument is out of range; or, by `result`, labels had no box.
        MissingPackageError: torchmetrics, torchvision or pycocotools is not installed.
        ModelError: By `update`: nothing of the kind was given, or a name has no id.

    Example:
        >>> box = [[0.0, 0.0, 10.0, 10.0]]
        >>> found, right = {"boxes": box, "scores": [0.9], "labels": [1]}, {"boxes": box, "labels": [1]}
        >>> metric = MAP()  # doctest: +SKIP
        >>> metric.update([found], [right])  # doctest: +SKIP
        >>> metric.result()  # doctest: +SKIP
        1.0

    Source: Everingham et al., The Pascal Visual Object Classes Challenge, 2015. The name is that of INC 2.6.1, which
    has it for TensorFlow and ONNX only. The area is the mean at 1000 points, which is off by 0.0005 at most.
    """

    COUNTED = "box in the labels"
    whole_output: ClassVar[bool] = True

    def __init__(
        self, anno_path: str | Path | None = None, iou_thrs: float | str = HALF, map_points: int = AREA
    ) -> None:
        if map_points not in (AREA, VOC_POINTS, COCO_POINTS):
            raise ConfigError.field(type(self).__name__, "map_points", map_points, "0, 11 or 101")
        self.iou_thrs = iou_thrs
        self.map_points = map_points
        self._overlaps = _overlaps(iou_thrs, type(self).__name__)
        self._ids = {} if anno_path is None else _ids_of_names(Path(anno_path), type(self).__name__)
        super().__init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(iou_thrs={self.iou_thrs!r}, map_points={self.map_points})"

    def update(self, preds: Any, labels: Any) -> None:  # noqa: ANN401  whatever a model and a loader give
        try:
            found = [_tensors(image) for image in (preds if _is_by_image(preds) else self._found(preds))]
            right = [_tensors(image) for image in (labels if _is_by_image(labels) else self._right(labels))]
            for metric in self._metrics:
                metric.update(found, right)
        except ModelError:
            raise
        except (IndexError, KeyError, TypeError, ValueError) as error:
            message = (
                f"The metric {self!r} cannot read what it was given ({error!r}): expected for each image a dict with "
                "'boxes', 'scores' and 'labels' as prediction, and 'boxes' and 'labels' as label, or the tuples "
                "(boxes, scores, classes) and (boxes, names, classes, image_ids). Let prepare bring them to that form."
            )
            raise ModelError(message) from error
        self._count += sum(len(image["boxes"]) for image in right)

    def _build(self) -> list[Any]:
        feature = f"The metric {type(self).__name__}"
        require("torchvision", "vision", feature)
        require("pycocotools", EXTRA, feature)
        from torchmetrics.detection.mean_ap import MeanAveragePrecision

        metric = MeanAveragePrecision(
            iou_thresholds=self._overlaps, rec_thresholds=_recalls(self.map_points), sync_on_compute=False
        )
        metric.warn_on_many_detections = False
        return [metric]

    def _number(self, value: Mapping[str, torch.Tensor]) -> float:
        return float(value["map"])

    def _places(self, count: int) -> Mapping[str, int]:
        """Where each of so many outputs is."""
        return _in_order(WITH_COUNT if count == len(WITH_COUNT) else OUTPUTS)

    def _found(self, outputs: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The boxes of each image from INC's tuple of a batch."""
        places = self._places(len(outputs))
        boxes, scores, classes = (outputs[places[name]] for name in OUTPUTS)
        place = places.get("num_detections", ABSENT)
        counts = [len(image) for image in scores] if place == ABSENT else outputs[place]
        for own_boxes, own_scores, own_classes, count in zip(boxes, scores, classes, counts, strict=True):
            rows = slice(int(count))
            yield {"boxes": own_boxes[rows], "scores": own_scores[rows], "labels": own_classes[rows]}

    def _right(self, labels: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The boxes of each image from INC's labels of a batch."""
        boxes, names, classes, _ = labels
        for image, own_boxes in enumerate(boxes):
            ids = classes[image] if len(classes) else ()
            yield {"boxes": own_boxes, "labels": ids if len(ids) else [self._id_of(name) for name in names[image]]}

    def _id_of(self, name: str) -> int:
        if name in self._ids:
            return self._ids[name]
        message = (
            f"The metric {self!r} was given the label {name!r} without an id: expected ids of classes, or names that "
            "anno_path has. Give ids, or a YAML file with lines 'name: id' as anno_path."
        )
        raise ModelError(message)


@final
@REGISTRY.register("COCOmAP", summary="mean average precision of boxes as COCO has it, over ten overlaps")
class CocoMAP(MAP):
    """`MAP` as the benchmark COCO has it: overlaps from 0.5 to 0.95, 101 points of recall.

    Source: Lin et al., Microsoft COCO, arXiv:1405.0312.
    """

    def __init__(
        self,
        anno_path: str | Path | None = None,
        iou_thrs: float | str = COCO_OVERLAPS,
        map_points: int = COCO_POINTS,
    ) -> None:
        super().__init__(anno_path, iou_thrs, map_points)


@final
@REGISTRY.register("COCOmAPv2", summary="COCOmAP of outputs in any order")
class CocoMAPv2(MAP):
    """`CocoMAP` that is told where a model's outputs are.

    Args:
        anno_path: As for `MAP`.
        iou_thrs: As for `MAP`.
        map_points: As for `MAP`.
        output_index_mapping: The place of ``boxes``, ``scores`` and ``classes`` among the outputs, and that of
            ``num_detections``, -1 where there is none.

    Raises:
        ConfigError: As for `MAP`; or a place is missing.

    Source: as for `CocoMAP`.
    """

    def __init__(
        self,
        anno_path: str | Path | None = None,
        iou_thrs: float | str = COCO_OVERLAPS,
        map_points: int = COCO_POINTS,
        output_index_mapping: Mapping[str, int] | None = None,
    ) -> None:
        given = _in_order(OUTPUTS) if output_index_mapping is None else output_index_mapping
        if not set(OUTPUTS) <= set(given) <= set(WITH_COUNT):
            want = "the places of 'boxes', 'scores' and 'classes', and that of 'num_detections' where there is one"
            raise ConfigError.field(type(self).__name__, "output_index_mapping", given, want)
        self.output_index_mapping = dict(given)
        super().__init__(anno_path, iou_thrs, map_points)

    def _places(self, count: int) -> Mapping[str, int]:  # noqa: ARG002  told, not guessed from the number
        return self.output_index_mapping


@final
@REGISTRY.register("VOCmAP", summary="mean average precision of boxes as Pascal VOC has it")
class VocMAP(MAP):
    """`MAP` as the benchmark Pascal VOC has it since 2010: one overlap, 0.5, and the area under the curve.

    Source: as for `MAP`.
    """


def _in_order(names: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def _is_by_image(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, Mapping) for value in values)


def _tensors(image: Mapping[str, Any]) -> dict[str, Any]:
    """What torchmetrics is given of an image."""
    tensors = {
        "boxes": as_tensor(image["boxes"]).float().reshape(-1, 4),
        "labels": as_tensor(image["labels"]).long().reshape(-1),
    }
    if "scores" in image:
        tensors["scores"] = as_tensor(image["scores"]).float().reshape(-1)
    return tensors


def _recalls(points: int) -> list[float]:
    """Where the curve is looked at: at both ends and between, or for the area in the middle of each part."""
    if points == AREA:
        return [(place + 0.5) / FINE for place in range(FINE)]
    return [place / (points - 1) for place in range(points)]


def _overlaps(given: object, owner: str) -> list[float]:
    """The overlaps that ``iou_thrs`` stands for."""
    try:
        if isinstance(given, str):
            first, step, last = map(float, given.split(":"))
            overlaps = [first + step * place for place in range(round((last - first) / step) + 1)]
        else:
            overlaps = [float(given)]  # type: ignore[arg-type]  # what fails here is explained
    except (TypeError, ValueError, ZeroDivisionError):
        overlaps = []
    if overlaps and all(0 < overlap <= 1 for overlap in overlaps):
        return overlaps
    raise ConfigError.field(owner, "iou_thrs", given, f"a number in (0, 1], or several such as {COCO_OVERLAPS!r}")


def _ids_of_names(path: Path, owner: str) -> dict[str, int]:
    """The id of each name of a class, from a file."""
    from inc_torch.core.plain_yaml import read_text

    try:
        ids = read_text(path.read_text(encoding="utf-8"), str(path)).value
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError.field(owner, "anno_path", str(path), f"a YAML file that can be read ({error})") from error
    if isinstance(ids, dict) and all(isinstance(value, int) for value in ids.values()):
        return ids
    raise ConfigError.field(owner, "anno_path", str(path), "a YAML file with lines 'name: id'")
