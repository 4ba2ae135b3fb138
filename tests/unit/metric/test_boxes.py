"""Mean average precision of boxes: by hand, by its definition, and by torchmetrics itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.core.evaluation import evaluate
from inc_torch.metric import METRICS
from tests.support.vision import imported

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")
imported("torchvision.ops")

NAMES = ["mAP", "COCOmAP", "COCOmAPv2", "VOCmAP"]


@pytest.fixture(autouse=True)
def _torchvision(monkeypatch):
    """torchmetrics looks for torchvision when it is imported, perhaps before it was there."""
    from torchmetrics.utilities import imports

    monkeypatch.setattr(imports._TORCHVISION_AVAILABLE, "available", True, raising=False)


def _metric(name, **kwargs):
    return METRICS("pytorch")[name](**kwargs)


def _measured(name, updates, **kwargs):
    metric = _metric(name, **kwargs)
    for _ in range(2):
        metric.reset()
        for preds, labels in updates:
            metric.update(preds, labels)
        result = metric.result()
    return result


def _image(boxes, labels, scores=None):
    found = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
    return found if scores is None else {**found, "scores": torch.tensor(scores)}


def _square(place, size=10.0):
    return [place, 0.0, place + size, size]


def _random_images(count, classes=2):
    generator = np.random.default_rng(0)
    preds, labels = [], []
    for _ in range(count):
        right = generator.uniform(0, 50, (generator.integers(1, 5), 2))
        right = np.hstack([right, right + generator.uniform(10, 30, right.shape)])
        ids = generator.integers(0, classes, len(right))
        near = right + generator.normal(0, 3, right.shape).clip(-4, 4)
        far = generator.uniform(0, 40, (2, 2))
        boxes = np.vstack([near, np.hstack([far, far + 15])]).astype(np.float32)
        kinds = np.concatenate([ids, generator.integers(0, classes, 2)])
        preds.append(_image(boxes.tolist(), kinds.tolist(), generator.random(len(boxes), np.float32).tolist()))
        labels.append(_image(right.astype(np.float32).tolist(), ids.tolist()))
    return preds, labels


def _overlap(first, second):
    left, top = np.maximum(first[:2], second[:2])
    right, bottom = np.minimum(first[2:], second[2:])
    both = max(right - left, 0) * max(bottom - top, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return both / (areas - both)


def _curve(preds, labels, kind, overlap):
    """Recall and precision after each box of a class, by falling score."""
    hits, total = [], 0
    for found, right in zip(preds, labels, strict=True):
        free = right["boxes"][right["labels"] == kind].double().numpy()
        taken = np.zeros(len(free), bool)
        total += len(free)
        own = found["labels"] == kind
        order = found["scores"][own].argsort(descending=True)
        for box, score in zip(found["boxes"][own][order].double().numpy(), found["scores"][own][order], strict=True):
            overlaps = np.array([0 if used else _overlap(box, other) for used, other in zip(taken, free, strict=True)])
            is_hit = len(free) > 0 and overlaps.max() >= overlap
            if is_hit:
                taken[overlaps.argmax()] = True
            hits.append((float(score), is_hit))
    right = np.cumsum([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])])
    return right / total, right / np.arange(1, len(right) + 1)


def _average_precision(preds, labels, overlap, points, classes=2):
    means = []
    for kind in range(classes):
        recall, precision = _curve(preds, labels, kind, overlap)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        if points:
            places = np.searchsorted(recall, np.linspace(0, 1, points) - 1e-9)
            means.append(np.mean([best[place] if place < len(best) else 0 for place in places]))
        else:
            means.append(np.sum(np.diff(recall, prepend=0) * best))
    return float(np.mean(means))


@pytest.mark.parametrize("name", NAMES)
def test_perfect_boxes_have_one(name):
    boxes = [_square(0.0), _square(20.0)]
    assert _measured(name, [([_image(boxes, [0, 1], [0.9, 0.8])], [_image(boxes, [0, 1])])]) == pytest.approx(1)


def test_the_area_by_hand():
    """By score: right, wrong, right; the third box of the labels is found by nobody."""
    found = _image([_square(0.0), _square(100.0), _square(20.0)], [0, 0, 0], [0.9, 0.8, 0.7])
    right = _image([_square(0.0), _square(20.0), _square(40.0)], [0, 0, 0])
    assert _measured("mAP", [([found], [right])]) == pytest.approx((1 + 2 / 3 + 0) / 3, abs=0.0005)
    by_points = (4 * 1 + 3 * 2 / 3) / 11  # recall 0 to 0.3, 0.4 to 0.6
    assert _measured("mAP", [([found], [right])], map_points=11) == pytest.approx(by_points)


def test_the_overlap_decides():
    """Of squares that are shifted by a third, the half is common: 2/3 of each, and 1/2 of both."""
    update = ([_image([_square(3.0, 9.0)], [0], [0.9])], [_image([_square(0.0, 9.0)], [0])])
    assert [_measured("mAP", [update], iou_thrs=overlap) for overlap in (0.45, 0.55)] == [1, 0]
    assert _measured("COCOmAP", [update], iou_thrs="0.4:0.1:0.7") == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("name", "overlaps", "points", "tolerance"),
    [
        ("mAP", [0.5], 0, 0.0005),
        ("VOCmAP", [0.5], 0, 0.0005),
        ("COCOmAP", [0.5 + 0.05 * place for place in range(10)], 101, 1e-6),
        ("COCOmAPv2", [0.5 + 0.05 * place for place in range(10)], 101, 1e-6),
    ],
)
def test_random_boxes_have_what_the_definition_says(name, overlaps, points, tolerance):
    preds, labels = _random_images(12)
    expected = np.mean([_average_precision(preds, labels, overlap, points) for overlap in overlaps])
    assert 0.1 < expected < 0.9
    updates = [(preds[:5], labels[:5]), (preds[5:], labels[5:])]
    assert _measured(name, updates) == pytest.approx(expected, abs=tolerance)


def test_coco_is_that_of_torchmetrics():
    from torchmetrics.detection.mean_ap import MeanAveragePrecision

    preds, labels = _random_images(8)
    expected = float(MeanAveragePrecision()(preds, labels)["map"])
    assert _measured("COCOmAP", [(preds, labels)]) == pytest.approx(expected, abs=0.002)  # its recalls are float32


def _as_tuples(preds, labels, *, counted=False):
    """INC's form: a batch of as many rows for each image, the last of them empty where rows are counted."""
    counts = [len(image["scores"]) for image in preds]
    rows = max(counts)
    boxes, scores, classes = np.zeros((len(preds), rows, 4)), np.ones((len(preds), rows)), np.zeros((len(preds), rows))
    for place, image in enumerate(preds):
        boxes[place, : counts[place]] = image["boxes"]
        scores[place, : counts[place]] = image["scores"]
        classes[place, : counts[place]] = image["labels"]
    right = ([image["boxes"].tolist() for image in labels], [], [image["labels"].tolist() for image in labels], [1])
    return ((np.array(counts), boxes, scores, classes) if counted else (boxes, scores, classes)), right


def test_tuples_of_inc_are_read():
    preds, labels = _random_images(6)
    expected = _measured("COCOmAP", [(preds, labels)])
    counted, right = _as_tuples(preds, labels, counted=True)
    assert _measured("COCOmAP", [(counted, right)]) == pytest.approx(expected)
    alone = [_as_tuples([found], [label]) for found, label in zip(preds, labels, strict=True)]
    assert _measured("COCOmAP", alone) == pytest.approx(expected)
    order = {"num_detections": 3, "boxes": 2, "scores": 1, "classes": 0}
    reversed_outputs = [(counted[::-1], right)]
    assert _measured("COCOmAPv2", reversed_outputs, output_index_mapping=order) == pytest.approx(expected)


def test_names_of_classes_are_read_from_a_file(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text("cat: 3\ndog: 7\n", encoding="utf-8")
    boxes = [_square(0.0), _square(20.0)]
    update = (([boxes], [[0.9, 0.8]], [[7, 3]]), ([boxes], [["dog", "cat"]], [[]], [0]))
    assert _measured("mAP", [update], anno_path=str(path)) == pytest.approx(1)
    with pytest.raises(ModelError, match=r"the label 'dog' without an id.*as anno_path"):
        _metric("mAP").update(*update)


def test_models_are_measured_with_all_their_outputs():
    class Detector(nn.Module):
        def forward(self, images):
            return images[None], torch.tensor([[0.9]]), torch.tensor([[1]])

    loader = [(torch.tensor([_square(0.0)]), ([[_square(0.0)]], [[]], [[1]], [0]))]
    assert evaluate(Detector(), loader, _metric("COCOmAP")) == pytest.approx(1)


def test_images_without_boxes_are_taken():
    empty = _image([], [], [])
    boxes = [_square(0.0)]
    preds, labels = [empty, _image(boxes, [0], [0.5])], [_image([], []), _image(boxes, [0])]
    assert _measured("VOCmAP", [(preds, labels)]) == pytest.approx(1)
    with pytest.raises(ConfigError, match="at least one box in the labels"):
        _measured("VOCmAP", [(preds[:1], labels[:1])])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"map_points": 10}, r"MAP\.map_points=10: expected 0, 11 or 101"),
        ({"iou_thrs": 0}, r"MAP\.iou_thrs=0: expected a number in \(0, 1\]"),
        ({"iou_thrs": "0.5:0.95"}, r"MAP\.iou_thrs='0.5:0.95'.*such as '0.5:0.05:0.95'"),
        ({"iou_thrs": "0.5:0:0.95"}, r"MAP\.iou_thrs"),
        ({"iou_thrs": None}, r"MAP\.iou_thrs=None"),
        ({"anno_path": "nowhere.yaml"}, r"MAP\.anno_path='nowhere.yaml': expected a YAML file that can be read"),
        ({"anno_path": __file__}, r"MAP\.anno_path=.*expected a YAML file"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        _metric("mAP", **kwargs)


def test_a_missing_output_is_refused():
    with pytest.raises(ConfigError, match=r"CocoMAPv2\.output_index_mapping=\{'boxes': 0\}: expected the places of"):
        _metric("COCOmAPv2", output_index_mapping={"boxes": 0})


@pytest.mark.parametrize(
    ("preds", "labels"),
    [
        ([{"boxes": [_square(0.0)]}], [_image([_square(0.0)], [0])]),
        ([_image([_square(0.0)], [0], [0.5])] * 2, [_image([_square(0.0)], [0])]),
        ((torch.zeros(1, 2, 4),), [_image([_square(0.0)], [0])]),
        (torch.zeros(3), [_image([_square(0.0)], [0])]),
        ([_image([_square(0.0)], [0], [0.5])], torch.zeros(2)),
    ],
)
def test_what_is_no_box_is_refused(preds, labels):
    with pytest.raises(ModelError, match=r"MAP\(iou_thrs=0.5, map_points=0\) cannot read.*Let prepare bring them"):
        _metric("mAP").update(preds, labels)
