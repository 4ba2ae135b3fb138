"""Weights that are read for one operation at a time: equal results, little memory, nothing left behind."""

from __future__ import annotations

import copy
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.core.errors import ArtifactError, ModelError
from inc_torch.core.streaming import StreamedWeights, attach_weights, attached_weights


class Odd(nn.Module):
    """Owns Parameters beside children, ties weights, and reads the weight of a module that it does not call."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.table = nn.Embedding(9, 6)
        self.rnn = nn.LSTM(6, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.silent = nn.Linear(6, 6)
        self.list = nn.ParameterList([torch.randn(6), torch.randn(6)])
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.rnn(self.table(ids) * self.scale)[0]
        x = self.attention(x, x, x)[0] + sum(self.list)
        x = F.linear(x, self.silent.weight, self.silent.bias)
        positions = torch.arange(x.shape[1], device=self.silent.weight.device)
        return self.head(x + positions.unsqueeze(-1).to(self.silent.weight))


IDS = torch.tensor([[1, 4, 8, 0]])


@pytest.fixture
def full():
    torch.manual_seed(0)
    return Odd().eval()


def emptied(model):
    """The same model on the meta device, tied as before."""
    model = copy.deepcopy(model).to("meta")
    if isinstance(model, Odd):
        model.head.weight = model.table.weight
    return model


class Store:
    """Loaders of a model's weights that count the bytes alive of what they gave."""

    def __init__(self, model):
        self.alive = self.peak = self.reads = 0
        self.loaders = {name: lambda tensor=tensor: self._give(tensor) for name, tensor in model.named_parameters()}

    def _give(self, tensor):
        given = tensor.detach().clone()
        self.reads += 1
        self.alive += given.nbytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(given.untyped_storage(), self._drop, given.nbytes)
        return given

    def _drop(self, size):
        self.alive -= size


def streamed(full):
    model, store = emptied(full), Store(full)
    return model, store, StreamedWeights(model, store.loaders)


def largest_module(model):
    return max(sum(p.nbytes for p in module.parameters(recurse=False)) for module in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_streamed_model_computes_what_the_full_one_does_as_often_as_wanted(full, mode):
    model, _, weights = streamed(full)
    with mode(), weights.streaming():
        first, second = model(IDS), model(IDS)
    with mode():
        expected = full(IDS)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_no_more_than_one_module_is_ever_in_memory(full):
    model, store, weights = streamed(full)
    with torch.no_grad(), weights.streaming():
        model(IDS)
    assert 0 < store.peak <= largest_module(full)
    assert store.alive == 0


def test_shapes_are_known_without_reading_and_an_operation_reads_each_weight_once():
    layer = nn.Linear(3, 2)
    model, store, weights = streamed(layer)
    with torch.no_grad(), weights.streaming():
        assert (model.weight.shape, model.weight.dtype, model.weight.numel()) == ((2, 3), torch.float32, 6)
        assert store.reads == 0
        model(torch.ones(1, 3))
    assert store.reads == 2


def test_an_exception_leaves_nothing_behind(full):
    model, store, weights = streamed(full)
    handle = model.head.register_forward_hook(lambda *_: 1 / 0)
    with torch.no_grad(), pytest.raises(ZeroDivisionError), weights.streaming():
        model(IDS)
    handle.remove()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert store.alive == 0
    with torch.no_grad(), weights.streaming():
        assert torch.equal(model(IDS), full(IDS))


def test_code_that_asks_where_a_weight_lies_hears_the_cpu(full):
    model, _, weights = streamed(full)
    with weights.streaming():
        place = model.scale.device, model.scale.is_meta, model.scale.is_cpu
    assert place == (torch.device("cpu"), False, True)
    assert model.scale.is_meta


def test_values_come_in_the_dtype_of_the_parameter(full):
    model, _, weights = streamed(full)
    model.to(torch.bfloat16)
    with torch.no_grad(), weights.streaming():
        assert torch.equal(model(IDS), full.to(torch.bfloat16)(IDS))


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.mul_(2),
        lambda p: p.__setitem__(0, 1.0),
        lambda p: setattr(p, "data", torch.zeros(6)),
        lambda p: nn.init.zeros_(p),
    ],
)
def test_writing_to_a_streamed_weight_is_refused(full, write):
    model, _, weights = streamed(full)
    with torch.no_grad(), weights.streaming(), pytest.raises(ModelError, match=r"'scale' is streamed.*would not last"):
        write(model.scale)


def test_requires_grad_is_set_on_the_parameter_itself(full):
    model, _, weights = streamed(full)
    with weights.streaming():
        model.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_one_module_is_loaded_for_good_and_later_the_rest(full):
    model, store, weights = streamed(full)
    attach_weights(model, weights)
    weights.materialise_(model.table)
    assert not model.table.weight.is_meta
    assert model.head.weight.is_meta
    assert attached_weights(model) is weights
    weights.materialise_(model)
    assert model.head.weight is model.table.weight
    assert attached_weights(model) is None
    assert store.alive == 0, "what is kept must not lie in the memory of the file"
    with torch.no_grad():
        assert torch.equal(model(IDS), full(IDS))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {n: True for n, _ in full.named_parameters()}


def test_a_module_that_was_loaded_is_not_read_again(full):
    model, store, weights = streamed(full)
    weights.materialise_(model)
    reads = store.reads
    with torch.no_grad(), weights.streaming():
        model(IDS)
    assert store.reads == reads == len(list(full.parameters()))


def test_a_copy_that_shares_parameters_is_streamed_too(full):
    model, _, weights = streamed(full)
    attach_weights(model, weights)
    borrower = copy.deepcopy(model, memo={id(parameter): parameter for parameter in model.parameters()})
    for one in (weights, attached_weights(borrower)):
        with torch.no_grad(), one.streaming():
            assert torch.equal(borrower(IDS), full(IDS))


def test_a_deep_copy_has_streamed_weights_of_its_own(full):
    model, _, weights = streamed(full)
    attach_weights(model, weights)
    other = copy.deepcopy(model)
    with torch.no_grad(), attached_weights(other).streaming():
        assert torch.equal(other(IDS), full(IDS))
    attached_weights(other).materialise_(other)
    assert model.scale.is_meta
    assert not other.scale.is_meta


def read_eye():
    return torch.eye(2)


def test_a_pickled_model_is_streamed_after_loading():
    layer = nn.Linear(2, 2, bias=False, device="meta")
    attach_weights(layer, StreamedWeights(layer, {"weight": read_eye}))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad(), attached_weights(loaded).streaming():
        assert loaded(torch.tensor([1.0, 2.0])).tolist() == [1, 2]


def test_weights_without_a_loader_are_named(full):
    with pytest.raises(
        ModelError, match=r"Odd has 'table.weight', 'head.weight' on the meta device.* expected a loader"
    ):
        StreamedWeights(emptied(full), {n: p.detach for n, p in full.named_parameters() if n != "table.weight"})


def test_a_loader_for_either_name_of_a_tied_weight_is_enough(full):
    model = emptied(full)
    loaders = {name: parameter.detach for name, parameter in full.named_parameters() if name != "table.weight"}
    weights = StreamedWeights(model, {**loaders, "head.weight": full.head.weight.detach})
    with torch.no_grad(), weights.streaming():
        assert torch.equal(model(IDS), full(IDS))


def test_a_loader_without_a_weight_is_refused_with_the_nearest_name():
    with pytest.raises(ModelError, match=r"'weights', which Linear does not have. Did you mean 'weight'\?"):
        StreamedWeights(nn.Linear(2, 2), {"weights": read_eye})


def test_values_of_another_shape_are_refused():
    layer = nn.Linear(3, 2, bias=False, device="meta")
    weights = StreamedWeights(layer, {"weight": read_eye})
    with weights.streaming(), pytest.raises(ArtifactError, match=r"'weight' has shape \(2, 3\), but shape \(2, 2\)"):
        layer(torch.ones(3))


def test_a_model_in_memory_is_left_alone(full):
    weights = StreamedWeights(full, {})
    expected = full(IDS)
    with weights.streaming():
        assert torch.equal(full(IDS), expected)
    scale = full.scale
    weights.materialise_(full)
    assert full.scale is scale
