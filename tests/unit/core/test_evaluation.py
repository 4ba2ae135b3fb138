"""The loop that evaluates, and the mode in which it does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from inc_torch.core.batches import run
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.evaluation import evaluate, single_number
from inc_torch.core.modes import evaluating
from inc_torch.metric import METRICS, read_metric

A, B, C, Y = (torch.full((2, 3), float(value)) for value in range(4))


OUTPUT = SequenceClassifierOutput(logits=A, hidden_states=(B, C))


class _Plus(nn.Module):
    def forward(self, x):
        return x + 2


def test_modes_are_restored_module_by_module_also_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout().eval())).train()
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="mine"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("mine")
    assert [module.training for module in model.modules()] == before == [True, True, True, False]


class _Spy:
    def __init__(self):
        self.seen = []

    def reset(self):
        self.seen.clear()

    def update(self, preds, labels):
        self.seen.append((preds, labels))

    def result(self):
        return len(self.seen)


class _Probe(nn.Module):
    """Returns what it is made with, and notes how it was run."""

    def __init__(self, output):
        super().__init__()
        self.output, self.runs = output, []

    def forward(self, x):
        self.runs.append((self.training, torch.is_grad_enabled()))
        return self.output


def test_a_model_is_evaluated_in_eval_mode_without_gradients():
    model = _Probe(A)
    assert evaluate(model, [(A, Y), (A, Y)], _Spy()) == 2.0
    assert model.runs == [(False, False)] * 2
    assert model.training


@pytest.mark.parametrize(
    "output",
    [A, OUTPUT, {"logits": A}, (A, B), (torch.tensor(0.5), A), SimpleNamespace(logits=A)],
    ids=["tensor", "ModelOutput", "dict", "tuple", "tuple with a loss", "object"],
)
def test_the_metric_is_fed_with_the_logits(output):
    spy = _Spy()
    evaluate(_Probe(output), [(A, Y)], spy)
    ((preds, labels),) = spy.seen
    assert preds is A
    assert labels is Y


@pytest.mark.parametrize("output", [[A], {"boxes": A}], ids=["list", "dict without logits"])
def test_other_outputs_reach_the_metric_as_they_are(output):
    spy = _Spy()
    evaluate(_Probe(output), [(A, Y)], spy)
    assert spy.seen[0][0] is output


def test_accuracy_of_a_real_loader_counts_samples_not_batches():
    data = torch.utils.data.TensorDataset(torch.eye(3), torch.tensor([0, 1, 0]))
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    metric = read_metric({"topk": 1})
    assert evaluate(nn.Identity(), loader, metric) == evaluate(nn.Identity(), loader, metric) == pytest.approx(2 / 3)


def test_prepare_stands_before_the_metric_and_may_bring_the_label():
    shifted = evaluate(nn.Identity(), [A], METRICS("pytorch")["MSE"](), prepare=lambda output, label: (output + 2, C))
    assert shifted == 0


def test_a_reference_takes_the_place_of_labels_only_where_asked_for():
    model, float_model = nn.Identity(), _Plus()
    metric = read_metric({"MSE": {"compare_label": False}, "MAE": {}})
    loader = [(A, B), (A, C)]
    evaluate(model, loader, metric, reference=lambda inputs: run(float_model, inputs))
    assert metric.results() == {"MSE": 4.0, "MAE": 1.5}


def test_a_reference_needs_no_labels():
    metric = METRICS("pytorch")["RMSE"](compare_label=False)
    assert evaluate(nn.Identity(), [A, B], metric, reference=lambda inputs: inputs.args[0] - 3) == 3


def test_prepare_is_used_on_the_reference_too():
    metric = METRICS("pytorch")["MAE"](compare_label=False)
    distance = evaluate(
        nn.Identity(),
        [(A, Y)],
        metric,
        prepare=lambda output, label: (output * 10, label),
        reference=lambda inputs: inputs.args[0] + 1,
    )
    assert distance == 10


def test_a_missing_reference_is_refused_before_anything_runs():
    model = _Probe(A)
    with pytest.raises(ConfigError, match=r"MSE\(compare_label=False\) has compare_label=False.*Pass reference"):
        evaluate(model, [(A, Y)], read_metric({"MSE": {"compare_label": False}}))
    assert model.runs == []


@pytest.mark.parametrize("loader", [[], iter(())])
def test_an_empty_loader_is_refused(loader):
    with pytest.raises(ConfigError, match="gave no batch: expected at least one"):
        evaluate(nn.Identity(), loader, _Spy())


def test_a_batch_without_a_label_is_refused():
    with pytest.raises(ConfigError, match=r"float32 \[2, 3\] has no label: expected \(input, label\)"):
        evaluate(nn.Identity(), [A], _Spy())


def test_an_error_of_the_metric_says_what_it_was_given():
    class Broken(_Spy):
        def update(self, preds, labels):
            raise KeyError("mine")

        def __repr__(self):
            return "Broken()"

    with pytest.raises(KeyError, match="mine") as caught:
        evaluate(nn.Identity(), [(A, np.zeros(2))], Broken())
    assert caught.value.__notes__ == [
        "While updating the metric Broken() with predictions of type float32 [2, 3] and labels of type float64 [2]."
    ]


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array([0.5]), torch.tensor([[0.5]])])
def test_a_single_number_may_have_any_type(value):
    assert single_number(value, "mine") == 0.5


@pytest.mark.parametrize("value", [None, "0.5", [0.5], torch.zeros(2), {"accuracy": 0.5}])
def test_a_result_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigTypeError, match=r"The metric mine has the result .*: expected a single number"):
        single_number(value, "mine")


def test_a_terminal_sees_progress(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert evaluate(nn.Identity(), [(A, Y)], _Spy()) == 1
    assert "Evaluating" in capsys.readouterr().err


def test_nothing_is_written_without_a_terminal(capsys):
    evaluate(nn.Identity(), [(A, Y)], _Spy())
    assert tuple(capsys.readouterr()) == ("", "")


def test_a_reference_is_not_run_where_labels_are_compared():
    def reference(inputs):
        raise AssertionError

    assert evaluate(nn.Identity(), [(A, A)], METRICS("pytorch")["MSE"](), reference=reference) == 0
