"""Batches of every form, signatures of every form, and the loop that evaluates."""

from __future__ import annotations

import collections
import dataclasses
from typing import NamedTuple, Optional

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BatchEncoding
from transformers.modeling_outputs import SequenceClassifierOutput

from inc_torch.core.batches import (
    Inputs,
    batch_size_of,
    count_samples,
    described,
    evaluate,
    evaluating,
    run,
    single_number,
    split,
)
from inc_torch.core.errors import ConfigError, ConfigTypeError, ModelError
from inc_torch.metric import METRICS, read_metric

A, B, C, Y = (torch.full((2, 3), float(value)) for value in range(4))


def _model(forward):
    """A module whose forward is a function without ``self``."""
    return type("Model", (nn.Module,), {"forward": staticmethod(forward)})()


MODELS = {
    "x": _model(lambda x: x),
    "x, m=None": _model(lambda x, m=None: x),
    "ids=None, mask=None, labels=None": _model(lambda ids=None, mask=None, labels=None: ids),
    "a, b": _model(lambda a, b: a),
    "a, b, c=None": _model(lambda a, b, c=None: a),
    "x, labels": _model(lambda x, labels: x),
    "*args": _model(lambda *args: args),
    "*args, **kwargs": _model(lambda *args, **kwargs: args),
    "x, **kwargs": _model(lambda x, **kwargs: x),
    "x, *, m": _model(lambda x, *, m: x),
}


class Named(NamedTuple):
    x: torch.Tensor
    label: torch.Tensor


class Strange(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass
class Data:
    x: torch.Tensor
    m: torch.Tensor
    labels: torch.Tensor


@dataclasses.dataclass
class Opaque:
    pixels: torch.Tensor


OPAQUE = Opaque(A)
ENCODING = BatchEncoding({"ids": A, "mask": B, "labels": Y})
USER = collections.UserDict({"x": A, "label": Y})
OUTPUT = SequenceClassifierOutput(logits=A, hidden_states=(B, C))

FORMS = [
    ("x", A, (A,), {}, None),
    ("x", (A,), (A,), {}, None),
    ("x", (A, Y), (A,), {}, Y),
    ("x", [A, Y], (A,), {}, Y),
    ("x", (A, 3), (A,), {}, 3),
    ("x", ([A, B], Y), ([A, B],), {}, Y),
    ("x", "text", ("text",), {}, None),
    ("x", ["one text", "another"], (["one text", "another"],), {}, None),
    ("x", (["one", "two"], Y), (["one", "two"],), {}, Y),
    ("x, m=None", (A, B), (A,), {}, B),
    ("x, m=None", (A, B, Y), (A, B), {}, Y),
    ("x, m=None", ((A, B), Y), (A, B), {}, Y),
    ("x, m=None", [[A, B], Y], (A, B), {}, Y),
    ("x, m=None", ((A,), Y), (A,), {}, Y),
    ("a, b", (A, B), (A, B), {}, None),
    ("a, b", (A, B, Y), (A, B), {}, Y),
    ("a, b", ((A, B), Y), (A, B), {}, Y),
    ("a, b", ({"a": A, "b": B}, Y), (), {"a": A, "b": B}, Y),
    ("a, b, c=None", (A, B, Y), (A, B), {}, Y),
    ("a, b, c=None", (A, B, C, Y), (A, B, C), {}, Y),
    ("a, b, c=None", ((A, B, C), Y), (A, B, C), {}, Y),
    ("x, labels", (A, Y), (A, Y), {}, Y),
    ("*args", (A, Y), (A,), {}, Y),
    ("*args", ((A, B, C), Y), (A, B, C), {}, Y),
    ("*args", (A, B, C), (A, B, C), {}, None),
    ("*args, **kwargs", {"p": A, "q": B, "labels": Y}, (), {"p": A, "q": B}, Y),
    ("ids=None, mask=None, labels=None", (A, B, Y), (A, B, Y), {}, Y),
    ("ids=None, mask=None, labels=None", ENCODING, (), {"ids": A, "mask": B, "labels": Y}, Y),
    ("ids=None, mask=None, labels=None", {"ids": A, "extra": C}, (), {"ids": A}, None),
    ("ids=None, mask=None, labels=None", {"ids": A, "label": Y}, (), {"ids": A}, Y),
    ("ids=None, mask=None, labels=None", (ENCODING, C), (), {"ids": A, "mask": B, "labels": Y}, C),
    ("x", {"x": A, "labels": Y}, (), {"x": A}, Y),
    ("x", USER, (), {"x": A}, Y),
    ("x", {"image": A, "label": Y}, (A,), {}, Y),
    ("x", OUTPUT, (OUTPUT,), {}, None),
    ("x, **kwargs", {"image": A, "label": Y}, (A,), {}, Y),
    ("ids=None, mask=None, labels=None", {"words": A, "labels": Y}, (A,), {"labels": Y}, Y),
    ("*args, **kwargs", {"x": A, "label": Y}, (), {"x": A}, Y),
    ("x, **kwargs", {"x": A, "other": B, "label": Y}, (), {"x": A, "other": B}, Y),
    ("x, *, m", {"x": A, "m": B}, (), {"x": A, "m": B}, None),
    ("x", Named(A, Y), (), {"x": A}, Y),
    ("x", Strange(A, Y), (A,), {}, Y),
    ("x, m=None", Data(A, B, Y), (), {"x": A, "m": B}, Y),
    ("x", OPAQUE, (OPAQUE,), {}, None),
]


@pytest.mark.parametrize(("model", "batch", "args", "kwargs", "label"), FORMS)
def test_every_form_is_laid_out_over_the_arguments_of_forward(model, batch, args, kwargs, label):
    inputs, found = split(batch, MODELS[model])
    assert _ids(inputs.args) == _ids(args)
    assert {name: id(value) for name, value in inputs.kwargs.items()} == {name: id(v) for name, v in kwargs.items()}
    assert found is label


def _ids(values):
    return [list(map(id, value)) if isinstance(value, list) else id(value) for value in values]


def _of_list(images: list[torch.Tensor], targets=None): ...
def _of_optional(images: Optional[list[torch.Tensor]], targets=None): ...  # noqa: UP045
def _of_lists(images: list, targets: list): ...
def _of_dict(batch: dict): ...
def _of_data(data: Opaque): ...


@pytest.mark.parametrize(
    ("forward", "batch", "args", "label"),
    [
        (_of_list, ([A, B], Y), ([A, B],), Y),
        (_of_optional, ([A, B], Y), ([A, B],), Y),
        (_of_lists, ([A, B], [C, Y]), ([A, B], [C, Y]), None),
        (_of_dict, {"batch": A, "labels": Y}, ({"batch": A, "labels": Y},), Y),
        (_of_data, OPAQUE, (OPAQUE,), None),
    ],
)
def test_an_argument_that_is_annotated_as_a_container_gets_it_whole(forward, batch, args, label):
    inputs, found = split(batch, _model(forward))
    assert (inputs.args, inputs.kwargs) == (args, {})
    assert found is label


def test_wrappers_are_seen_through():
    class Pair(nn.Module):
        def forward(self, a, b):
            return a

    assert len(split((A, B), torch.compile(Pair(), backend="eager"))[0].args) == 2


def test_arrays_become_tensors_in_place_of_themselves():
    frozen = np.arange(6, dtype=np.float32).reshape(2, 3)
    frozen.flags.writeable = False
    inputs, label = split(((frozen, {"deep": [frozen[::-1]]}), np.int64(3)), MODELS["x, m=None"])
    assert torch.equal(inputs.args[0], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(inputs.args[1]["deep"][0], torch.tensor([[3.0, 4.0, 5.0], [0.0, 1.0, 2.0]]))
    assert label.item() == 3
    words = np.array(["one", "two"])
    assert split(words, MODELS["x"])[0].args[0] is words


def test_tensors_move_to_the_model():
    model = nn.Linear(3, 1)
    model.frozen = nn.Parameter(torch.empty(0, device="meta"))
    inputs, label = split((torch.ones(2, 3, device="cpu"), Y), model)
    assert inputs.args[0].device == label.device == torch.device("cpu")


@pytest.mark.gpu
def test_tensors_move_to_the_device_of_the_first_parameter():
    inputs, label = split(({"input": A}, Y), nn.Linear(3, 1).cuda())
    assert inputs.kwargs["input"].is_cuda
    assert label.is_cuda


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        ("x", (A, B, C), r"Model.forward\(x\) cannot take a batch of type tuple \(float32 \[2, 3\], .*it has 3 items"),
        ("x", [], r"batch of type list \(\): it is empty"),
        ("a, b", A, "missing a required argument: 'b'"),
        ("a, b", {"a": A}, r"dict {a: float32 \[2, 3\]}: missing a required argument: 'b'"),
        ("x, *, m", (A, Y), "missing a required argument: 'm'"),
        ("x, labels", {"x": A}, "missing a required argument: 'labels'"),
    ],
)
def test_a_batch_that_forward_cannot_take_is_refused(model, batch, message):
    with pytest.raises(ModelError, match=message):
        split(batch, MODELS[model])


def test_an_error_of_the_model_is_raised_once_and_says_where():
    calls = []

    def forward(x, m=None):
        calls.append(x)
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine") as caught:
        run(_model(forward), Inputs((A,), {"m": None}))
    assert len(calls) == 1
    assert caught.value.__notes__ == ["While running Model with (float32 [2, 3], m=NoneType)."]


class _Loader:
    def __init__(self, **sizes):
        vars(self).update(sizes)


@pytest.mark.parametrize(
    ("loader", "size"),
    [
        (torch.utils.data.DataLoader(range(9), batch_size=4), 4),
        (torch.utils.data.DataLoader(range(9), batch_sampler=torch.utils.data.BatchSampler(range(9), 3, False)), 3),
        (_Loader(batch_size=None, total_batch_size=16), 16),
        (_Loader(batch_size=8, total_batch_size=16), 8),
        (_Loader(batch_size=None), None),
        ([A, B], None),
        (iter([A]), None),
    ],
)
def test_the_size_of_batches_is_found_where_loaders_keep_it(loader, size):
    assert batch_size_of(loader) == size


@pytest.mark.parametrize(
    ("inputs", "count"),
    [
        (Inputs((A,)), 2),
        (Inputs((), {"words": ["a"], "ids": torch.zeros(5, 1)}), 5),
        (Inputs(([], {"a": [torch.zeros(4)]})), 4),
        (torch.zeros(7, 2), 7),
        (torch.tensor(1.0), 1),
    ],
)
def test_samples_are_counted_by_the_first_tensor(inputs, count):
    assert count_samples(inputs) == count


def test_samples_without_a_tensor_are_refused():
    with pytest.raises(ModelError, match=r"no tensor in tuple \(tuple \(str\), dict {}\)"):
        count_samples(Inputs(("text",)))


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
    [A, OUTPUT, {"logits": A}, (A, B), (torch.tensor(0.5), A), _Loader(logits=A)],
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
    model, float_model = nn.Identity(), _model(lambda x: x + 2)
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


def test_arrays_are_described_by_shape():
    assert described([np.zeros((2, 1)), None]) == "list (array float64 [2, 1], NoneType)"
