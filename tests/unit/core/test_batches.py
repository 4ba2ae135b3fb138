"""Batches of every form, and signatures of every form."""

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

from inc_torch.core.batches import Inputs, count_samples, described, run, split
from inc_torch.core.errors import ModelError

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


def test_arrays_are_described_by_shape():
    assert described([np.zeros((2, 1)), None]) == "list (array float64 [2, 1], NoneType)"
