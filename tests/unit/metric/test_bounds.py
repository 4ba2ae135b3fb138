"""What a metric can still become: never less than what it becomes, and just that if all that comes is perfect."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inc_torch.metric import METRICS, read_metric

CLASSES = 3


def _scores(ids):
    """Scores of which those of ``ids`` are the greatest."""
    return torch.nn.functional.one_hot(ids, CLASSES).double()


@st.composite
def _batches(draw, elements):
    """Right and given values, in a few batches of samples with some elements each."""
    width = draw(st.sampled_from([(), (1,), (4,)]))
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    count = torch.Size(width).numel()

    def values(size):
        drawn = draw(st.lists(elements, min_size=size * count, max_size=size * count))
        return torch.tensor(drawn).reshape(size, *width)

    return [(values(size), values(size)) for size in sizes]


IDS = st.integers(0, CLASSES - 1)
NUMBERS = st.floats(-100, 100, width=32)


def _as_scores(batches):
    firsts = [[values.reshape(len(values), -1)[:, 0] for values in batch] for batch in batches]
    return [(_scores(preds), labels) for preds, labels in firsts]


KINDS = {
    "topk": (IDS, _as_scores, _scores),
    "Accuracy": (IDS, lambda batches: batches, lambda labels: labels),
    "MSE": (NUMBERS, lambda batches: batches, lambda labels: labels),
    "MAE": (NUMBERS, lambda batches: batches, lambda labels: labels),
    "RMSE": (NUMBERS, lambda batches: batches, lambda labels: labels),
}


def _after(name, updates):
    metric = METRICS("pytorch")[name]()
    for preds, labels in updates:
        metric.update(preds, labels)
    return metric


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_a_bound_holds_at_each_batch_and_is_reached_by_perfect_ones(name, data):
    elements, arrange, perfect = KINDS[name]
    batches = arrange(data.draw(_batches(elements)))
    final = _after(name, batches).result()
    sign = 1 if METRICS("pytorch")[name].higher_is_better else -1
    best = []
    for seen in range(1, len(batches) + 1):
        rest = batches[seen:]
        best.append(_after(name, batches[:seen]).bound(sum(len(labels) for _, labels in rest)))
        assert sign * best[-1] >= sign * final
        assert best[-1] == _after(name, [*batches[:seen], *((perfect(labels), labels) for _, labels in rest)]).result()
    assert sign * best[0] == max(sign * bound for bound in best)
    assert best[-1] == final


@given(first=st.integers(0, 2), second=st.integers(0, 3))
def test_no_order_of_hits_gets_past_the_bound(first, second):
    """All ways to go on with two or three samples, by hand."""
    metric = _after("Accuracy", [([1] * first + [0] * (2 - first), [1, 1])])
    results = [(first + hits) / (2 + second) for hits in range(second + 1)]
    assert metric.bound(second) == max(results)


def test_bounds_by_hand():
    topk = _after("topk", [([[0.1, 0.9], [0.9, 0.1]], [1, 1])])
    assert [topk.bound(remaining) for remaining in (0, 2, 8)] == [0.5, 0.75, 0.9]
    errors = {name: _after(name, [([3.0, 0.0], [0.0, 1.0])]) for name in ("MSE", "MAE", "RMSE")}
    assert {name: metric.bound(8) for name, metric in errors.items()} == {"MSE": 1.0, "MAE": 0.4, "RMSE": 1.0}


@pytest.mark.parametrize(("name", "best"), [("Accuracy", 1.0), ("MSE", 0.0), ("RMSE", 0.0), ("MAE", 0.0)])
def test_samples_of_several_sizes_bound_nothing(name, best):
    metric = _after(name, [([[1, 1]], [[0, 0]]), ([[1, 1, 1]], [[0, 0, 0]])])
    assert metric.bound(1) == best
    assert metric.bound(0) == metric.result() != best
    assert metric.samples == 2


@pytest.mark.parametrize("name", KINDS)
def test_before_the_first_batch_everything_is_possible(name):
    metric_class = METRICS("pytorch")[name]
    assert metric_class().bound(5) == float(metric_class.higher_is_better)
    assert metric_class().samples == 0


def test_elements_count_where_a_sample_has_several():
    metric = _after("Accuracy", [([[1, 0, 1, 1]], [[1, 1, 1, 1]])])
    assert (metric.samples, metric.bound(3)) == (1, 15 / 16)


def test_reset_forgets_the_bound():
    metric = _after("MSE", [([2.0], [0.0])])
    metric.reset()
    assert (metric.bound(1), metric.samples) == (0.0, 0)


def test_a_weighted_sum_is_bounded_by_the_sum_of_bounds():
    measure = read_metric({"topk": 1, "Accuracy": None, "weight": [0.25, 0.5]})
    measure.update([[0.1, 0.9], [0.9, 0.1]], [1, 1])
    assert measure.bound(2) == 0.25 * 0.75 + 0.5 * 0.75


def test_directions_may_differ_as_long_as_each_is_the_own_one():
    measure = read_metric({"Accuracy": None, "MSE": None, "weight": [1, 1]})
    measure.update([1, 0], [1, 2])
    assert measure.result() == 0.5 - 2.0
    assert measure.bound(2) == 0.75 - 1.0


@pytest.mark.parametrize(
    "given",
    [
        "F1",
        {"topk": 1, "Loss": None},
        {"MSE": None, "higher_is_better": True},
        {"topk": 1, "MSE": None, "higher_is_better": [True, True]},
    ],
)
def test_without_a_bound_for_each_there_is_none(given):
    assert read_metric(given).bound is None


class Hits:
    """A user's metric with a bound, without reset."""

    def __init__(self):
        self.hits, self.count = 0, 0

    def update(self, preds, labels):
        self.hits += int((preds == labels).sum())
        self.count += len(labels)

    def result(self):
        return self.hits / self.count

    def bound(self, remaining):
        return (self.hits + remaining) / (self.count + remaining)


def test_a_metric_of_a_user_may_have_a_bound():
    measure = read_metric(Hits())
    for _ in range(2):
        measure.reset()
        measure.update(torch.tensor([1, 0]), torch.tensor([1, 1]))
        assert measure.bound(2) == 0.75


def test_an_attribute_that_is_no_function_is_no_bound():
    class Other(Hits):
        bound = 3

    assert read_metric(Other).bound is None
