"""The loop that evaluates, and the mode in which it does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers.modeling_outputs import SequenceClassifierOutput

from inc_torch.core.batches import run
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.evaluation import GoalOutOfReach, evaluate, prediction_of, single_number, why_no_bound
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


# ------------------------------------------------------------------------------ goals out of reach

IDS = torch.tensor([1, 1, 0, 0, 0, 0, 1, 1, 1, 1])
"""Where all labels are 1: after 4 samples 8 of 10 may be right at best, after 6 samples 6."""


def _loader(**options):
    return DataLoader(TensorDataset(IDS, torch.ones_like(IDS)), **options)


def _batches(size=2):
    return [(ids, torch.ones_like(ids)) for ids in IDS.split(size)]


class _Counted(list):
    """A list of batches that knows how many were read."""

    def __iter__(self):
        self.read = 0
        for batch in super().__iter__():
            self.read += 1
            yield batch


@pytest.mark.parametrize("loader", [_batches(), tuple(_batches()), _loader(batch_size=2)])
def test_an_evaluation_ends_where_the_goal_is_out_of_reach(loader):
    asked = []

    def hopeless(bound):
        asked.append(bound)
        return bound < 0.7

    model = nn.Dropout()
    with pytest.raises(GoalOutOfReach, match=r"After 3 batches the score is 0.333.*, and 0.6 at best") as caught:
        evaluate(model, loader, read_metric("Accuracy"), hopeless=hopeless)
    assert asked == [1.0, 0.8, 0.6]
    assert (caught.value.score, caught.value.bound, caught.value.batches) == (2 / 6, 0.6, 3)
    assert model.training


@pytest.mark.parametrize(("goal", "batches"), [(0.61, 3), (0.81, 2), (0.6, None)])
def test_no_batch_more_than_needed_is_read(goal, batches):
    loader = _Counted(_batches())
    metric = METRICS("pytorch")["Accuracy"]()
    if batches is None:
        assert evaluate(nn.Identity(), loader, metric, hopeless=lambda bound: bound < goal) == 0.6
        assert loader.read == 5
    else:
        with pytest.raises(GoalOutOfReach) as caught:
            evaluate(nn.Identity(), loader, metric, hopeless=lambda bound: bound < goal)
        assert loader.read == caught.value.batches == batches


def test_errors_only_grow():
    loader = [(torch.tensor([value]), torch.tensor([0.0])) for value in (1.0, 3.0, 0.0, 0.0)]
    with pytest.raises(GoalOutOfReach) as caught:
        evaluate(nn.Identity(), loader, read_metric("MSE"), hopeless=lambda bound: bound > 2)
    assert (caught.value.batches, caught.value.bound, caught.value.score) == (2, 2.5, 5.0)


def test_after_the_last_batch_nobody_is_asked():
    asked = []
    score = evaluate(nn.Identity(), _batches(5), read_metric("Accuracy"), hopeless=lambda bound: asked.append(bound))
    assert (score, asked) == (0.6, [0.7])


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({"batch_size": 4}, [8 / 10, 6 / 10]),
        ({"batch_size": 4, "drop_last": True}, [6 / 8]),
        ({"batch_size": 2, "sampler": torch.utils.data.SubsetRandomSampler([3, 4, 5])}, [1 / 3]),
        ({"batch_size": 2, "sampler": torch.utils.data.RandomSampler(IDS, num_samples=2)}, []),
    ],
)
def test_samples_to_come_are_those_that_the_loader_gives(options, bounds):
    asked = []
    loader = _loader(**options)
    assert why_no_bound(loader, read_metric("Accuracy")) is None
    evaluate(nn.Identity(), loader, read_metric("Accuracy"), hopeless=lambda bound: asked.append(bound))
    assert asked == pytest.approx(bounds)


class _Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(sample, torch.tensor(1)) for sample in IDS])


UNKNOWN = {
    "stream": lambda: DataLoader(_Stream(), batch_size=2),
    "no batch size": lambda: DataLoader(_batches(), batch_size=None),
    "batches by somebody else": lambda: _loader(batch_sampler=[[0, 1, 2], [3, 4], [5, 6, 7, 8, 9]]),
    "generator": lambda: (batch for batch in _batches()),
    "texts": lambda: [(["a", "b"], [1, 1])],
}


@pytest.mark.parametrize("loader", UNKNOWN.values(), ids=UNKNOWN)
def test_where_samples_cannot_be_counted_nobody_is_asked(loader):
    reason = why_no_bound(loader(), read_metric("Accuracy"))
    assert "does not tell how many samples are to come, as a DataLoader with a batch_size" in reason
    fed = {"prepare": lambda ids, label: ([1, 1], [1, 1])} if isinstance(loader(), list) else {}
    assert evaluate(nn.Identity(), loader(), read_metric("Accuracy"), hopeless=lambda bound: True, **fed) > 0


def test_what_has_no_bound_is_named():
    reason = why_no_bound(_batches(), read_metric({"topk": 1, "F1": None}))
    assert reason == "the metric F1() has no bound(remaining), which topk, Accuracy, MSE, MAE and RMSE have"
    assert why_no_bound(_batches(), _Spy()).startswith("the metric <")
    turned = read_metric({"MSE": None, "higher_is_better": True})
    assert "the opposite of what the metric itself says" in why_no_bound(_batches(), turned)
    assert why_no_bound(_batches(), METRICS("pytorch")["topk"]()) is None


def test_a_metric_without_a_bound_reads_all():
    spy = _Spy()
    assert evaluate(nn.Identity(), _batches(), spy, hopeless=lambda bound: True) == 5


def test_a_metric_that_counts_other_samples_than_the_loader_reads_all():
    """What ``prepare`` takes apart or leaves out has another number of samples to come."""

    def halves(ids, labels):
        return ids.repeat(2), labels.repeat(2)

    score = evaluate(nn.Identity(), _batches(), read_metric("Accuracy"), prepare=halves, hopeless=lambda bound: True)
    assert score == 0.6


def test_a_bound_of_a_user_is_used():
    class Bounded(_Spy):
        def bound(self, remaining):
            return 10 * len(self.seen) + remaining

    asked = []
    evaluate(nn.Identity(), _batches(), Bounded(), hopeless=lambda bound: asked.append(bound))
    assert asked == [18, 26, 34, 42]


def test_a_bound_of_several_metrics_is_that_of_their_sum():
    metric = read_metric({"Accuracy": None, "MSE": None, "weight": [1, 2]})
    with pytest.raises(GoalOutOfReach) as caught:
        evaluate(nn.Identity(), _batches(), metric, hopeless=lambda bound: bound < 0.5)
    assert (caught.value.batches, caught.value.bound) == (2, pytest.approx(0.8 - 2 * 2 / 10))


# ------------------------------------------------------------------------------ what a metric is given


def test_a_metric_may_ask_for_all_that_a_model_returns():
    class Whole(_Spy):
        whole_output = True

    spy = Whole()
    evaluate(_Probe((A, B, C)), [(A, Y)], spy)
    assert spy.seen == [((A, B, C), Y)]
    assert read_metric(spy).parts[0].whole_output


def test_the_prediction_of_an_output_is_public():
    assert prediction_of(OUTPUT) is A
