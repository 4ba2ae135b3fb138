"""What users give as metric, and metrics of their own."""

from __future__ import annotations

import threading

import pytest
import torch

from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.evaluation import evaluate
from inc_torch.metric import METRICS, BaseMetric, Metric, metric_registry, read_metric

BATCH = (torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))


class Counting:
    """Without ``reset``, as INC's documents show one."""

    def __init__(self, start=0):
        self.count = start

    def update(self, preds, labels):
        self.count += len(preds)

    def result(self):
        return self.count


class Resetting(Counting):
    higher_is_better = False

    def reset(self):
        self.count = 0


class Computing:
    """In the manner of torchmetrics."""

    higher_is_better = None

    def reset(self):
        self.value = torch.tensor(0.0)

    def update(self, preds, target):
        self.value += len(preds)

    def compute(self):
        return self.value


def _evaluated(measure):
    measure.reset()
    measure.update(*BATCH)
    return measure.result()


@pytest.mark.parametrize(
    ("given", "result", "is_better"),
    [
        ("topk", 0.5, True),
        ({"topk": 2}, 1.0, True),
        ({"topk": {"k": 2}}, 1.0, True),
        ({"Accuracy": None}, 0.5, True),
        ({"Accuracy": {}, "higher_is_better": False}, 0.5, False),
        (Metric("topk", k=2), 1.0, True),
        (Metric(name="topk"), 0.5, True),
        (Metric(metric_cls=Counting, start=5), 7.0, True),
        (Metric("mine", Resetting), 2.0, False),
        (Metric(Resetting), 2.0, False),
        (Metric(Resetting, "mine"), 2.0, False),
        (Counting, 2.0, True),
        (Counting(3), 5.0, True),
        (Resetting(3), 2.0, False),
        (Computing(), 2.0, True),
        (METRICS("pytorch_fx")["topk"](k=2), 1.0, True),
    ],
)
def test_every_form_is_read_and_works_any_number_of_times(given, result, is_better):
    for _ in range(2):
        measure = read_metric(given)
        assert measure.higher_is_better is is_better
        assert [_evaluated(measure), _evaluated(measure)] == [result, result]


def test_several_metrics_are_weighed():
    given = {"topk": 1, "Accuracy": {}, "weight": [0.75, 0.5]}
    measure = read_metric(given)
    assert _evaluated(measure) == 0.75 * 0.5 + 0.5 * 0.5
    assert measure.results() == {"topk": 0.5, "Accuracy": 0.5}
    assert given == {"topk": 1, "Accuracy": {}, "weight": [0.75, 0.5]}


def test_without_weights_all_count_alike():
    assert _evaluated(read_metric({"topk": 1, "Accuracy": None, "weight": None})) == 0.5


def test_what_is_better_lower_counts_negative_beside_what_is_better_higher():
    measure = read_metric({"topk": 1, "Accuracy": None, "higher_is_better": [True, False], "weight": [1, 0.5]})
    assert (_evaluated(measure), measure.higher_is_better) == (0.25, True)


def test_metrics_that_are_all_better_lower_count_as_they_are():
    measure = read_metric({"MSE": {}, "MAE": {}, "weight": [1, 3]})
    measure.update([2.0], [0.0])
    assert (measure.result(), measure.higher_is_better) == (4 + 3 * 2, False)


def test_a_reference_is_needed_where_one_metric_asks_for_it():
    assert read_metric({"topk": 1, "MSE": {"compare_label": False}}).needs_reference
    assert not read_metric({"topk": 1, "MSE": {}}).needs_reference


def test_a_measure_is_read_as_itself():
    measure = read_metric("topk")
    assert read_metric(measure) is measure


def test_a_registered_class_has_a_name(monkeypatch):
    from inc_torch.metric._base import REGISTRY

    monkeypatch.setattr(REGISTRY, "_entries", dict(REGISTRY._entries))

    @metric_registry("always_one", "pytorch, pytorch_fx")
    class One(BaseMetric):
        def reset(self):
            pass

        def update(self, preds, labels):
            pass

        def result(self):
            return 1

    assert METRICS("pytorch")["always_one"] is One
    assert METRICS("pytorch").metrics["always_one"] is One
    assert _evaluated(read_metric({"always_one": None})) == 1.0
    METRICS("pytorch").register("always_one", One)
    with pytest.raises(ConfigError, match="'always_one' is already registered"):
        METRICS("pytorch").register("always_one", Counting)
    with pytest.raises(ConfigError, match="'topk' is already registered"):
        METRICS("pytorch").register("topk", Counting)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tokp", "Unknown metric 'tokp'. Did you mean 'topk'"),
        ({"Acc": {}}, "Did you mean 'Accuracy'"),
        ({"topk": {"K": 1}}, "'topk' cannot be made: got an unexpected.*'K'. Expected arguments: k. Did you mean 'k'"),
        ({"Accuracy": 1}, "'Accuracy' cannot be made: too many.* Expected arguments: none."),
        ({}, "expected the name of a metric"),
        ({"weight": [1.0]}, "expected the name of a metric"),
        ({"topk": 1, "weight": [0.5, 0.5]}, "eval_metric.weight=.*one entry for each metric, 1"),
        ({"topk": 1, "weight": -1}, "eval_metric.weight=-1: expected finite numbers of 0 or more"),
        ({"topk": 1, "weight": [0]}, "at least one number above 0"),
        ({"topk": 1, "higher_is_better": 1}, "eval_metric.higher_is_better=1: expected True or False"),
    ],
)
def test_wrong_words_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        read_metric(given)


@pytest.mark.parametrize("given", [3, None, lambda preds, labels: 1.0, object])
def test_what_is_no_metric_is_refused(given):
    with pytest.raises(ConfigTypeError, match=r"without a method 'update': expected update\(preds, labels\)"):
        read_metric(given)


def test_a_missing_result_is_named():
    class Unfinished:
        def update(self, preds, labels): ...
        def results(self): ...

    with pytest.raises(ConfigTypeError, match=r"without a method 'result'.*Did you mean 'results'"):
        read_metric(Unfinished)


def test_a_class_that_needs_arguments_is_refused():
    class Needy(Counting):
        def __init__(self, much): ...

    with pytest.raises(ConfigError, match="missing a required argument: 'much'"):
        read_metric(Needy)
    with pytest.raises(ConfigError, match="missing a required argument: 'much'"):
        Metric(metric_cls=Needy)


def test_a_description_with_an_object_is_refused():
    with pytest.raises(ConfigTypeError, match="Give an object as eval_metric itself"):
        Metric("mine", Counting())


def test_a_result_that_is_no_number_is_refused():
    class Several(Counting):
        def result(self):
            return [1, 2]

    with pytest.raises(ConfigTypeError, match=r"The metric Several has the result list \(int, int\)"):
        _evaluated(read_metric(Several))


def test_another_framework_is_refused():
    with pytest.raises(ConfigError, match=r"METRICS\.framework='tensorflow': expected one of 'pytorch'"):
        METRICS("tensorflow")


def test_a_metric_without_reset_is_copied_for_each_evaluation():
    mine = Counting(5)
    measure = read_metric(mine)
    assert [_evaluated(measure), _evaluated(measure)] == [7.0, 7.0]
    assert mine.count == 5


def test_a_metric_that_can_neither_be_reset_nor_copied_is_refused():
    class Locked(Counting):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

        def __repr__(self):
            return "Locked()"

    with pytest.raises(ConfigError, match=r"Locked\(\) without reset\(\).*cannot be made: .*lock.*Add a method reset"):
        read_metric(Locked())


def test_an_error_in_the_constructor_says_where():
    class Broken(Counting):
        def __init__(self, much=1):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        read_metric(Metric("broken", Broken, much=2))
    assert caught.value.__notes__ == ["While making the metric 'broken' with (much=2)."]


def test_an_update_with_other_arguments_says_what_it_was_given():
    class Alone(Counting):
        def update(self, preds):
            self.count += len(preds)

    with pytest.raises(TypeError, match="positional arguments") as caught:
        evaluate(torch.nn.Identity(), [BATCH], read_metric(Alone))
    assert "with predictions of type float32 [2, 2] and labels of type int64 [2]" in caught.value.__notes__[0]


@pytest.mark.parametrize("value", [None, "much", {"accuracy": 1.0}, torch.zeros(3)])
def test_what_a_user_returns_instead_of_a_number_is_named(value):
    class Odd(Counting):
        def result(self):
            return value

    with pytest.raises(ConfigTypeError, match=r"The metric Odd has the result .*: expected a single number"):
        evaluate(torch.nn.Identity(), [BATCH], read_metric(Odd))


def test_what_update_returns_has_no_effect():
    class Telling(Counting):
        def update(self, preds, labels):
            super().update(preds, labels)
            return "a value that nobody asked for"

    assert evaluate(torch.nn.Identity(), [BATCH], read_metric(Telling)) == 2
