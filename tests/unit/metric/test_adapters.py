"""Metrics that torchmetrics computes: numbers by hand, by torchmetrics itself, and its classes by name."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from inc_torch.core.errors import ConfigError, MissingPackageError, ModelError
from inc_torch.core.evaluation import evaluate
from inc_torch.metric import METRICS, Metric, read_metric

torchmetrics = pytest.importorskip("torchmetrics")

TEXTS = ["the cat sat on the mat", "there is no dog here , is there ?"]
RIGHT = ["the cat sat on a mat", "there is no dog here , or is there ?"]


def _measured(name, kwargs, updates):
    metric = METRICS("pytorch")[name](**kwargs)
    for _ in range(2):
        metric.reset()
        for preds, labels in updates:
            metric.update(preds, labels)
        result = metric.result()
    return result


# ------------------------------------------------------------------------------ BLEU


def test_bleu_by_hand():
    """Of 6, 5, 4 and 3 n-grams 5, 3, 2 and 1 are right, and no word is missing."""
    by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert _measured("BLEU", {}, [(TEXTS[:1], RIGHT[:1])]) == pytest.approx(by_hand, rel=1e-6)


def test_bleu_punishes_texts_that_are_too_short():
    assert _measured("BLEU", {}, [("a b c d", "a b c d e")]) == pytest.approx(100 * math.exp(1 - 5 / 4), rel=1e-6)


def test_bleu_is_of_the_corpus_and_that_of_torchmetrics():
    from torchmetrics.text import SacreBLEUScore

    at_once = 100 * SacreBLEUScore(tokenize="intl")(TEXTS, [[text] for text in RIGHT])
    in_parts = _measured("BLEU", {}, [(TEXTS[:1], RIGHT[:1]), (TEXTS[1:], RIGHT[1:])])
    assert in_parts == pytest.approx(float(at_once), rel=1e-6)
    means = [_measured("BLEU", {}, [pair]) for pair in zip(TEXTS, RIGHT, strict=True)]
    assert in_parts != pytest.approx(sum(means) / 2, rel=1e-3)


@pytest.mark.parametrize("labels", [["a b c d"], [["x", "a b c d"]], np.array(["a b c d"]), ("a b c d",)])
def test_texts_come_in_several_forms(labels):
    assert _measured("BLEU", {}, [(["a b c d"], labels)]) == pytest.approx(100)


def test_a_corpus_without_common_words_has_zero():
    assert _measured("BLEU", {}, [(["a b c d"], ["e f g h"])]) == 0


# ------------------------------------------------------------------------------ SquadF1


def test_squad_f1_by_hand():
    """Of two words and three, one is common; articles and dots are none; the best of the right answers counts."""
    updates = [(["in 1976"], [["since year 1976", "1977"]]), (["The Cat."], ["cat"]), (["dog"], ["cat"])]
    assert _measured("SquadF1", {}, updates) == pytest.approx(100 * (2 * 1 / 5 + 1 + 0) / 3, rel=1e-6)


def test_squad_f1_takes_the_dicts_of_squad_and_is_that_of_torchmetrics():
    from torchmetrics.text import SQuAD

    preds = [{"id": "b", "prediction_text": "1976 or so"}, {"id": "a", "prediction_text": "the cat"}]
    labels = [
        {"id": "a", "answers": {"text": ["a dog", "a black cat"], "answer_start": [0, 1]}},
        {"id": "b", "answers": {"text": ["1976"], "answer_start": [7]}},
    ]
    expected = float(SQuAD()(preds, labels)["f1"])
    assert _measured("SquadF1", {}, [(preds, labels)]) == pytest.approx(expected)
    texts = (["the cat", "1976 or so"], [["a dog", "a black cat"], "1976"])
    assert _measured("SquadF1", {}, [texts]) == pytest.approx(expected)


def test_a_question_without_an_answer_has_zero():
    labels = [{"id": name, "answers": {"text": ["cat"]}} for name in "ab"]
    assert _measured("SquadF1", {}, [([{"id": "a", "prediction_text": "cat"}], labels)]) == 50


# ------------------------------------------------------------------------------ mIOU


def test_miou_by_hand():
    """Class 0: 1 of 2, class 1: 2 of 4, class 2 is only predicted, class 3 nowhere; 255 is no class."""
    preds, labels = [[0, 1, 1, 1, 2, 3]], [[0, 0, 1, 1, 1, 255]]
    assert _measured("mIOU", {"num_classes": 4}, [(preds, labels)]) == pytest.approx((1 / 2 + 2 / 4 + 0) / 3)


@pytest.mark.parametrize("as_scores", [False, True])
def test_miou_is_that_of_its_definition_and_of_torchmetrics(as_scores):
    scores, labels = torch.randn(4, 5, 6, 7), torch.randint(0, 5, (4, 6, 7))
    ids = scores.argmax(1)
    overlaps = [((ids == c) & (labels == c)).sum() / ((ids == c) | (labels == c)).sum() for c in range(5)]
    preds = scores if as_scores else ids
    found = _measured("mIOU", {"num_classes": 5}, [(preds[:1], labels[:1]), (preds[1:], labels[1:])])
    assert found == pytest.approx(float(torch.stack(overlaps).mean()), rel=1e-6)
    assert found == pytest.approx(float(torchmetrics.JaccardIndex("multiclass", num_classes=5)(ids, labels)), rel=1e-6)


# ------------------------------------------------------------------------------ GLUE


IDS, TRUTH = [1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 1, 0]


def _correlation(first, second):
    return float(np.corrcoef(first, second)[0, 1])


@pytest.mark.parametrize(
    ("task", "preds", "labels", "expected"),
    [
        ("mrpc", IDS, TRUTH, 2 * 2 / (2 * 2 + 1 + 1)),
        ("cola", IDS, TRUTH, _correlation(IDS, TRUTH)),
        ("sst-2", IDS, TRUTH, 4 / 6),
        ("mnli", [2, 1, 0, 2], [2, 1, 1, 0], 0.5),
        ("mnli-mm", [2], [2], 1.0),
        (
            "sts-b",
            [[0.5], [2.0], [3.0], [4.5]],
            [1.0, 3.0, 2.0, 5.0],
            (_correlation([0.5, 2, 3, 4.5], [1, 3, 2, 5]) + _correlation([1, 2, 3, 4], [1, 3, 2, 4])) / 2,
        ),
        ("stsb", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
    ],
)
def test_glue_reports_the_number_of_its_task(task, preds, labels, expected):
    half = len(preds) // 2
    assert _measured("GLUE", {"task": task}, [(preds, labels)]) == pytest.approx(expected, abs=1e-6)
    halves = [(preds[:half], labels[:half]), (preds[half:], labels[half:])] if half else [(preds, labels)]
    if task != "stsb":  # Pearson's correlation warns of batches without variance
        assert _measured("GLUE", {"task": task}, halves) == pytest.approx(expected, abs=1e-6)


def test_glue_takes_scores():
    scores = torch.nn.functional.one_hot(torch.tensor(IDS), 2).float()
    assert _measured("GLUE", {"task": "qqp"}, [(scores, TRUTH)]) == pytest.approx(4 / 6)


# ------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", ["BLEU", "SquadF1", "mIOU", "GLUE"])
def test_a_result_of_nothing_is_refused(name):
    metric = METRICS("pytorch")[name]()
    assert metric.higher_is_better
    with pytest.raises(ConfigError, match="no result yet"):
        metric.result()


def test_pixels_without_a_class_are_nothing():
    with pytest.raises(ConfigError, match="at least one pixel with a class"):
        _measured("mIOU", {"num_classes": 2}, [([[0, 1]], [[255, -1]])])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mIOU", {"num_classes": 1}, r"MeanIoU\.num_classes=1: expected an integer of 2 or more"),
        ("mIOU", {"num_classes": 2.0}, r"MeanIoU\.num_classes=2\.0"),
        ("GLUE", {"task": "ax"}, r"GLUE\.task='ax': expected one of 'cola', 'mnli'"),
        ("GLUE", {"task": None}, r"GLUE\.task=None"),
    ],
)
def test_wrong_arguments_are_refused(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        METRICS("pytorch")[name](**kwargs)


@pytest.mark.parametrize(
    ("name", "preds", "labels", "message"),
    [
        ("BLEU", ["a"], ["a", "b"], r"BLEU was given predictions of type list \(str\) and labels of type list"),
        ("BLEU", [1, 2], ["a", "b"], r"expected as many texts in both"),
        ("BLEU", ["a"], [[]], r"expected as many texts in both"),
        ("SquadF1", ["a"], [["a", 3]], r"The metric SquadF1 was given"),
        ("SquadF1", {"a": "cat"}, [{"paragraphs": []}], r"The metric SquadF1 was given predictions of type dict"),
        ("SquadF1", [{"id": "a"}], [{"id": "a", "answers": {"text": ["b"]}}], r"a dict without 'prediction_text'"),
        ("mIOU", [[0, 25]], [[0, 1]], r"MeanIoU\(num_classes=21\) was given predictions from 0 to 25"),
        ("mIOU", [[0.5, 0.1]], [[0, 1]], r"mIOU was given fractions of shape \[1, 2\]"),
        ("GLUE", [0, 1], [0, 1, 1], r"GLUE was given predictions of shape \[2\]"),
    ],
)
def test_what_does_not_fit_is_refused(name, preds, labels, message):
    with pytest.raises(ModelError, match=message):
        METRICS("pytorch")[name]().update(preds, labels)


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("BLEU", "torchmetrics", "metrics"),
        ("BLEU", "regex", "metrics"),
        ("mIOU", "torchmetrics", "metrics"),
        ("mAP", "torchvision", "vision"),
        ("COCOmAP", "pycocotools", "metrics"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, name, missing, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == missing else True)
    with pytest.raises(
        MissingPackageError, match=rf"needs the package '{missing}'.*pip install 'inc_torch\[{extra}\]'"
    ):
        METRICS("pytorch")[name]()


# ------------------------------------------------------------------------------ classes of torchmetrics by name

SCORES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.2, 0.5, 0.3]])
CLASSES = torch.tensor([0, 2, 0, 1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"MulticlassF1Score": {"num_classes": 3, "average": "micro"}}, 3 / 4),
        ({"MulticlassF1Score": 3}, (2 / 3 + 2 / 3 + 1) / 3),
        (Metric("AUROC", task="multiclass", num_classes=3), 1.0),
        ({"AveragePrecision": {"task": "multiclass", "num_classes": 3}, "topk": 1, "weight": [0.5, 1]}, 0.5 + 3 / 4),
    ],
)
def test_a_class_of_torchmetrics_is_known_by_its_name(given, expected):
    measure = read_metric(given)
    assert measure.higher_is_better
    loader = [(SCORES[:2], CLASSES[:2]), (SCORES[2:], CLASSES[2:])]
    assert evaluate(torch.nn.Identity(), loader, measure) == pytest.approx(expected)
    assert evaluate(torch.nn.Identity(), loader, measure) == pytest.approx(expected)


def test_an_error_of_torchmetrics_is_better_lower():
    measure = read_metric("MeanAbsolutePercentageError")
    assert not measure.higher_is_better
    assert evaluate(torch.nn.Identity(), [(torch.tensor([1.0]), torch.tensor([2.0]))], measure) == 0.5


def test_registered_names_come_first():
    assert METRICS("pytorch")["ROC"] is not torchmetrics.ROC
    assert METRICS("pytorch")["BinaryROC"] is torchmetrics.classification.BinaryROC
    assert METRICS("pytorch")["BLEUScore"] is torchmetrics.text.BLEUScore  # not the deprecated one of the same name


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("MulticlassF1Scor", "MulticlassF1Score"), ("AUROCC", "AUROC"), ("miou", "mIOU"), ("map", "mAP"), ("f1", "F1")],
)
def test_the_nearest_name_is_suggested(name, suggestion):
    with pytest.raises(ConfigError, match=rf"Unknown metric '{name}'\. Did you mean '{suggestion}'\?"):
        read_metric(name)


@pytest.mark.parametrize("name", ["Metric", "MeanMetric", "BootStrapper", "MetricCollection", "functional"])
def test_what_takes_no_predictions_and_labels_is_unknown(name):
    with pytest.raises(ConfigError, match=f"Unknown metric '{name}'.*known too are the classes of torchmetrics"):
        read_metric(name)


def test_without_torchmetrics_an_unknown_name_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"after pip install 'inc_torch\[metrics\]' the classes of torchmetrics"):
        read_metric("AUROC")


def test_arguments_of_torchmetrics_are_checked():
    with pytest.raises(ConfigError, match="missing a required argument: 'num_classes'"):
        read_metric("MulticlassF1Score")
    with pytest.raises(ValueError, match="average") as caught:
        read_metric({"MulticlassF1Score": {"num_classes": 3, "average": "best"}})
    assert caught.value.__notes__ == [
        "While making the metric 'MulticlassF1Score' with (num_classes=3, average='best')."
    ]


def test_a_result_of_several_numbers_is_refused():
    measure = read_metric({"MulticlassF1Score": {"num_classes": 3, "average": None}})
    with pytest.raises(ConfigError, match=r"MulticlassF1Score has the result float32 \[3\]: expected a single number"):
        evaluate(torch.nn.Identity(), [(SCORES, CLASSES)], measure)
