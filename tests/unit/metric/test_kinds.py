"""The built-in metrics: INC's numbers, closed forms, all kinds of input, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.metric import METRICS

FOLDER = Path(__file__).parents[2] / "vectors"
QUANTIZATION = json.loads((FOLDER / "quantization.json").read_text(encoding="utf-8"))["metrics"]
DISTILLATION = json.loads((FOLDER / "distillation.json").read_text(encoding="utf-8"))["metrics"]
BUILT_IN = METRICS("pytorch").metrics
OF_INC = QUANTIZATION["pytorch_metric_names"]
BY_TORCHMETRICS = {"BLEU", "COCOmAP", "COCOmAPv2", "GLUE", "SquadF1", "VOCmAP", "mAP", "mIOU"}
"""Names that INC knows, but not for PyTorch; see test_adapters.py and test_boxes.py."""

RECORDED = [
    *[(case["name"], case["args"], case["updates"], case["result"]) for case in QUANTIZATION["metrics"]],
    *[(case["metric"], case["kwargs"], case["batches"], case["expected"]) for case in DISTILLATION],
]
SAME = [case for case in RECORDED if case[0] in OF_INC and case[0] != "Loss"]
LOSSES = [1.0, 2.0, 2.0]
"""Of the three recorded runs of Loss: INC raises, gives 6.0, and 2.0."""

FORMS = {
    "lists": lambda values: values,
    "arrays": np.asarray,
    "reversed arrays": lambda values: np.asarray(values)[::-1].copy()[::-1],
    "tensors": torch.tensor,
    "tensors with a gradient": lambda values: torch.tensor(values, dtype=torch.float64).requires_grad_(),
    "lists of tensors": lambda values: [torch.tensor(value) for value in values],
}


def _measured(name, kwargs, updates, form=FORMS["lists"]):
    metric = METRICS("pytorch")[name](**kwargs)
    for _ in range(2):
        metric.reset()
        for preds, labels in updates:
            metric.update(form(preds), form(labels))
    return metric.result()


def test_the_built_in_metrics_are_those_of_inc():
    assert set(BUILT_IN) == {*OF_INC, *BY_TORCHMETRICS}
    assert len(SAME) == 20


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("name", "kwargs", "updates", "result"), SAME)
def test_results_are_those_of_inc(name, kwargs, updates, result, form):
    assert _measured(name, kwargs, updates, form) == pytest.approx(result, rel=1e-6)


def test_loss_is_the_mean_of_losses():
    updates = [updates for name, _, updates, _ in RECORDED if name == "Loss"]
    assert [_measured("Loss", {}, update) for update in updates] == LOSSES


def test_a_single_loss_stands_for_all_samples_of_its_batch():
    assert _measured("Loss", {}, [(2.0, [0, 0, 0]), ([6.0], [0])]) == 3.0


@pytest.mark.parametrize(
    ("name", "is_better"), [(name, name not in {"MSE", "MAE", "RMSE", "Loss"}) for name in BUILT_IN]
)
def test_every_metric_says_whether_higher_is_better(name, is_better):
    assert BUILT_IN[name].higher_is_better is is_better


def test_of_equal_scores_exactly_k_classes_are_hits():
    updates = [([[1.0, 1.0, 1.0]], [label]) for label in range(3)]
    assert [_measured("topk", {"k": k}, updates) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_nan_is_no_hit():
    assert _measured("topk", {}, [([[math.nan, math.nan]], [0])]) == 0


def test_topk_takes_one_sample_and_columns_of_labels():
    assert _measured("topk", {}, [([0.1, 0.9], 1)]) == 1
    assert _measured("topk", {}, [([[0.1, 0.9], [0.9, 0.1]], [[1], [1]])]) == 0.5


@pytest.mark.parametrize("classes_last", [False, True])
def test_accuracy_finds_the_axis_of_classes(classes_last):
    scores = torch.randn(2, 5, 7)
    labels = scores.argmax(2 if classes_last else 1)
    labels[0, 0] += 1
    assert _measured("Accuracy", {}, [(scores, labels)]) == 1 - 1 / labels.numel()


def test_accuracy_of_columns_compares_ids():
    assert _measured("Accuracy", {}, [([[1], [0], [1]], [1, 1, 1])]) == pytest.approx(2 / 3)


def test_accuracy_of_bfloat16_scores():
    assert _measured("Accuracy", {}, [(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16), torch.tensor([1]))]) == 1


def test_mean_errors_agree_with_torch_over_all_batches():
    preds, labels = torch.randn(6, 4), torch.randn(6, 4)
    updates = [(preds[:5], labels[:5]), (preds[5:], labels[5:])]
    difference = (preds - labels).double()
    assert _measured("MSE", {}, updates) == pytest.approx(difference.square().mean().item())
    assert _measured("RMSE", {}, updates) == pytest.approx(difference.square().mean().sqrt().item())
    assert _measured("MAE", {}, updates) == pytest.approx(difference.abs().mean().item())


def test_a_column_of_predictions_is_not_broadcast_against_labels():
    assert _measured("MSE", {}, [(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0]))]) == 0


def test_f1_counts_repeated_tokens_and_cuts_text_at_spaces():
    assert _measured("F1", {}, [("a a b", "a c")]) == pytest.approx(2 * 1 / 5)
    assert _measured("F1", {}, [([], [])]) == 1
    assert _measured("F1", {}, [(["x"], [])]) == 0


def test_the_area_under_the_curve_counts_pairs():
    scores, labels = torch.randint(0, 5, (40,)) / 4, torch.randint(0, 2, (40,))
    positives, negatives = scores[labels == 1], scores[labels == 0]
    pairs = (positives[:, None] > negatives).double() + (positives[:, None] == negatives).double() / 2
    area = _measured("ROC", {"value": "auc"}, [(scores[:7], labels[:7]), (scores[7:], labels[7:])])
    assert area == pytest.approx(pairs.mean().item())


@pytest.mark.parametrize("name", OF_INC)
def test_a_result_of_nothing_is_refused(name):
    with pytest.raises(ConfigError, match="no result yet"):
        METRICS("pytorch")[name]().result()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("topk", {"k": 0}, r"TopK\.k=0: expected an integer of 1 or more"),
        ("topk", {"k": True}, r"TopK\.k=True"),
        ("MSE", {"compare_label": "no"}, r"MSE\.compare_label='no': expected True or False"),
        ("ROC", {"task": "bert"}, r"ROC\.task='bert': expected one of 'dlrm', 'dien', 'wide_deep'"),
        ("ROC", {"value": "area"}, r"ROC\.value='area': expected one of 'accuracy', 'auc'"),
    ],
)
def test_wrong_arguments_are_refused(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        METRICS("pytorch")[name](**kwargs)


@pytest.mark.parametrize(
    ("name", "preds", "labels", "message"),
    [
        ("topk", [[0.5, 0.5]], [2], r"scores of shape \[1, 2\] and 1 labels from 2 to 2: expected .* in \[0, 2\)"),
        ("topk", [[0.5, 0.5]], [0, 1], r"and 2 labels"),
        ("topk", [[[0.5]]], [0], r"scores of shape \[1, 1, 1\]"),
        ("Accuracy", [0.9, 0.2], [1, 0], r"fractions of shape \[2\].*expected class ids"),
        ("Accuracy", [[0.1, 0.9]], [1, 0, 1], r"shape \[1, 2\] and labels of shape \[3\]"),
        ("MSE", [1.0, 2.0], [1.0], r"The metric MSE was given predictions of shape \[2\] and labels of shape \[1\]"),
        ("MAE", ["a"], ["b"], r"was given list \(str\): expected numbers"),
        ("F1", [[1, 2]], [[1, 2]], r"F1 was given list \(list \(int, int\)\): expected one flat sequence"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(name, preds, labels, message):
    with pytest.raises(ModelError, match=message):
        METRICS("pytorch")[name]().update(preds, labels)


def test_the_area_needs_both_classes():
    with pytest.raises(ConfigError, match="2 positives and 0 negatives"):
        _measured("ROC", {"value": "auc"}, [([0.5, 0.6], [1, 1])])
