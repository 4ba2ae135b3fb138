"""Modules that compute in bfloat16 take and give what they took and gave before."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers.pytorch_utils import Conv1D

from inc_torch.core.errors import ArtifactError, ModelError
from inc_torch.export import adorn
from inc_torch.precision import (
    compute_in_bfloat16,
    compute_in_float,
    describe_bfloat16,
    has_bfloat16,
    reasons_against_bfloat16,
    rebuild_bfloat16,
)

LOW, FULL = torch.bfloat16, torch.float32
CASES = {
    "linear": (lambda: nn.Linear(6, 4), (2, 6)),
    "transposed linear": (lambda: Conv1D(4, 6), (2, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, padding=1), (2, 6, 5)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(6, 4, 2), (2, 6, 3, 3, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(6, 4, 3, stride=2), (2, 6, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(6, 4, 3), (2, 6, 5, 5)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(6, 4, 2), (2, 6, 3, 3, 3)),
    "rnn": (lambda: nn.RNN(6, 4), (3, 2, 6)),
    "lstm": (lambda: nn.LSTM(6, 4, 2, bidirectional=True), (3, 2, 6)),
    "gru": (lambda: nn.GRU(6, 4), (3, 2, 6)),
    "rnn cell": (lambda: nn.RNNCell(6, 4), (2, 6)),
    "lstm cell": (lambda: nn.LSTMCell(6, 4), (2, 6)),
    "gru cell": (lambda: nn.GRUCell(6, 4), (2, 6)),
    "embedding": (lambda: nn.Embedding(9, 4), None),
}


def input_of(shape):
    return torch.tensor([[0, 8, 3]]) if shape is None else torch.randn(shape)


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [inner for item in value for inner in tensors(item)]


@pytest.fixture(params=sorted(CASES))
def case(request):
    build, shape = CASES[request.param]
    return build(), input_of(shape)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.out = nn.Linear(4, 9)
        self.out.weight = self.words.weight

    def forward(self, words):
        return self.out(self.words(words))


# ------------------------------------------------------------------------------ numbers


@torch.no_grad()
def test_results_are_those_of_the_module_cast_by_hand(case):
    module, values = case
    by_hand = copy.deepcopy(module).to(LOW)
    compute_in_bfloat16(module)
    want = by_hand(values.to(LOW) if values.is_floating_point() else values)
    got = module(values)
    assert [tensor.dtype for tensor in tensors(got)] == [FULL] * len(tensors(want))
    assert all(torch.equal(one, other.to(FULL)) for one, other in zip(tensors(got), tensors(want), strict=True))


@torch.no_grad()
def test_what_came_in_a_tuple_or_by_keyword_is_cast_too():
    module = nn.LSTM(6, 4)
    by_hand = copy.deepcopy(module).to(LOW)
    values, state, cell = torch.randn(3, 2, 6), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    compute_in_bfloat16(module)
    want = by_hand(values.to(LOW), (state.to(LOW), cell.to(LOW)))
    got = module(input=values, hx=(state, cell))
    assert isinstance(got[1], tuple)
    assert all(torch.equal(one, other.to(FULL)) for one, other in zip(tensors(got), tensors(want), strict=True))


@torch.no_grad()
def test_a_packed_sequence_stays_one():
    module = nn.GRU(6, 4)
    by_hand = copy.deepcopy(module).to(LOW)
    packed = pack_padded_sequence(torch.randn(4, 3, 6), [4, 2, 1])
    compute_in_bfloat16(module)
    got, state = module(packed)
    want, want_state = by_hand(packed.to(LOW))
    assert type(got) is type(packed)
    assert got.data.dtype == state.dtype == FULL
    assert torch.equal(got.data, want.data.to(FULL))
    assert torch.equal(got.batch_sizes, packed.batch_sizes)
    assert torch.equal(state, want_state.to(FULL))


def test_dicts_and_named_tuples_go_through_whole():
    from collections import namedtuple

    from inc_torch.precision._casting import cast as _cast

    pair = namedtuple("pair", ["left", "right"])
    got = _cast({"a": pair(torch.ones(2), [torch.ones(2, dtype=torch.int64), None])}, LOW)
    assert type(got["a"]) is pair
    assert got["a"].left.dtype == LOW
    assert got["a"].right[0].dtype == torch.int64
    assert got["a"].right[1] is None


def test_gradients_pass_through():
    module = nn.Linear(2, 1, bias=False)
    compute_in_bfloat16(module)
    values = torch.tensor([[1.0, -2.0]], requires_grad=True)
    module(values).sum().backward()
    assert module.weight.grad.tolist() == [[1.0, -2.0]]
    assert torch.equal(values.grad, module.weight.detach().float())


def test_a_transformer_layer_in_eval_does_not_pass_them_by():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    values = torch.randn(2, 3, 8)
    compute_in_bfloat16(layer, ["linear1"])
    want = layer.train()(values)
    with torch.no_grad():
        assert torch.allclose(layer.eval()(values), want, atol=1e-6)


# ------------------------------------------------------------------------------ the object


def test_object_class_parameters_and_hooks_stay(case):
    module, values = case
    kind, before, calls = type(module), dict(module.named_parameters()), []
    module.register_forward_hook(lambda *_: calls.append(1))
    compute_in_bfloat16(module)
    module(values)
    assert calls == [1]
    assert isinstance(module, kind)
    assert (type(module).__name__, type(module).__module__) == (kind.__name__, kind.__module__)
    after = dict(module.named_parameters())
    assert all(after[name] is parameter and parameter.dtype == LOW for name, parameter in before.items())


def test_it_is_printed():
    module = nn.Sequential(nn.LSTM(3, 2), nn.Linear(2, 2, bias=False))
    compute_in_bfloat16(module, ["0", "1"])
    assert repr(module[0]) == "LSTM(3, 2, computes in bfloat16)"
    assert repr(module[1]) == "Linear(in_features=2, out_features=2, bias=False, computes in bfloat16)"


@torch.no_grad()
def test_copies_and_pickles_compute_the_same(case):
    module, values = case
    compute_in_bfloat16(module)
    want = tensors(module(values))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert all(torch.equal(one, two) for one, two in zip(tensors(other(values)), want, strict=True))


def test_an_adorned_root_is_copied_too():
    module = nn.Linear(2, 2)
    compute_in_bfloat16(module)
    adorn(module)
    other = pickle.loads(pickle.dumps(module))
    assert torch.equal(other(torch.ones(2)), module(torch.ones(2)))
    assert hasattr(other, "save")


def test_doing_it_twice_changes_nothing():
    module = nn.Linear(2, 2)
    compute_in_bfloat16(module)
    kind = type(module)
    compute_in_bfloat16(module)
    assert type(module) is kind
    assert module(torch.ones(2)).dtype == FULL


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_another_dtype_changes_what_comes_out_and_no_weight(case, dtype):
    module, values = case
    for parameter in module.parameters():
        parameter.mul_(1e-6)  # float16 would lose these
    compute_in_bfloat16(module)
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    want = tensors(module(values))
    module.to(dtype)
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    got = tensors(module(values))
    assert all(one.dtype == dtype and torch.equal(one, two.to(dtype)) for one, two in zip(got, want, strict=True))


def test_an_empty_copy_can_be_filled():
    with torch.device("meta"):
        module = nn.LSTM(3, 2)
    compute_in_bfloat16(module)
    module.to_empty(device="cpu")
    other = nn.LSTM(3, 2)
    compute_in_bfloat16(other)
    module.load_state_dict(other.state_dict())
    values = torch.randn(4, 1, 3)
    assert torch.equal(module(values)[0], other(values)[0])


@torch.no_grad()
def test_the_way_back_leaves_the_rounded_weights(case):
    module, values = case
    kind, rounded = type(module), copy.deepcopy(module).to(LOW).to(FULL)
    compute_in_bfloat16(module)
    compute_in_float(module)
    assert type(module) is kind
    assert "float_dtype" not in vars(module)
    assert all(torch.equal(*pair) for pair in zip(tensors(module(values)), tensors(rounded(values)), strict=True))


# ------------------------------------------------------------------------------ what cannot


def test_tied_weights_stay_tied_if_all_that_share_them_are_named():
    model = Tied()
    compute_in_bfloat16(model, ["words", "out"])
    assert model.out.weight is model.words.weight
    words = torch.tensor([1, 2])
    assert model(words).dtype == model.words(words).dtype == FULL
    compute_in_float(model)
    assert model.out.weight is model.words.weight
    assert model.out.weight.dtype == FULL


@pytest.mark.parametrize(("named", "other"), [("out", "words"), ("words", "out")])
def test_a_weight_that_a_float_module_shares_is_not_cast_under_it(named, other):
    model = Tied()
    with pytest.raises(
        ModelError, match=rf"'{named}' of Tied cannot .*shares 'weight' with '{other}'.*name both, or neither"
    ):
        compute_in_bfloat16(model, [named])
    assert model.out.weight.dtype == FULL
    assert type(model.get_submodule(named)) in (nn.Linear, nn.Embedding)


def test_what_is_tied_to_something_refused_is_refused_too():
    class Owner(nn.Linear):
        pass

    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": Owner(2, 2), "c": nn.Linear(2, 2)})
    model["a"].weight = model["b"].weight
    model["a"].bias = model["c"].bias
    assert reasons_against_bfloat16(model, ["a", "b", "c"]).keys() == {"a", "b", "c"}


def test_subclasses_and_replaced_forwards_are_left_alone():
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(4, 2), "norm": nn.LayerNorm(4), "patched": nn.Linear(4, 4)}
    )
    model["patched"].forward = model["norm"].forward
    reasons = reasons_against_bfloat16(model, ["attention.out_proj", "norm", "patched"])
    assert "is a subclass of Linear" in reasons["attention.out_proj"]
    assert reasons["norm"] == "LayerNorm is not one of the classes that can"
    assert reasons["patched"] == "its forward was replaced on the instance"


def test_a_name_that_is_not_there():
    with pytest.raises(ModelError, match=r"Tied has no module 'word'. Did you mean 'words'"):
        compute_in_bfloat16(Tied(), ["word"])


# ------------------------------------------------------------------------------ descriptions


def test_a_description_rebuilds_the_model():
    model = nn.Sequential(nn.LSTM(3, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    compute_in_bfloat16(model, ["0", "2"])
    description = describe_bfloat16(model)
    assert description == {"0": "LSTM", "2": "Linear"}
    other = nn.Sequential(nn.LSTM(3, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    rebuild_bfloat16(other, description)
    assert describe_bfloat16(other) == description
    assert [parameter.dtype for parameter in other[1].parameters()] == [FULL, FULL]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"fc": "Linear", "word": "Embedding"}, r"names 'word', which Tied does not have. Did you mean 'words'"),
        ({"out": "LSTM"}, r"names 'out' as 'LSTM', but Tied has a Linear there. Build the model"),
        ({"out": 3}, r"names 'out' as 3, but Tied has a Linear there"),
        ({"out": "Linear"}, r"names 'out', which cannot compute in it: it shares 'weight' with 'words'"),
        ({"norm": "LayerNorm"}, r"LayerNorm is not one of the classes that can"),
        ({"fc": "float16 Embedding"}, r"names 'fc' as 'float16 Embedding', but Tied has a Linear there"),
    ],
)
def test_a_damaged_description_is_refused(description, message):
    model = Tied()
    model.fc, model.norm = nn.Linear(2, 2), nn.LayerNorm(2)
    with pytest.raises(ArtifactError, match=message):
        rebuild_bfloat16(model, description)
    assert describe_bfloat16(model) == {}


# ------------------------------------------------------------------------------ hardware


@pytest.mark.parametrize(("wide", "tiles"), [(True, False), (False, True), (False, False)])
def test_the_instructions_of_the_cpu_decide(monkeypatch, wide, tiles):
    monkeypatch.delenv("FORCE_BF16", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: wide)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert has_bfloat16() is (wide or tiles)


def test_a_torch_without_the_probes_says_no(monkeypatch):
    monkeypatch.delenv("FORCE_BF16", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert has_bfloat16() is False


def test_it_can_be_forced(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setenv("FORCE_BF16", "1")
    assert has_bfloat16() is has_bfloat16("meta") is True
    monkeypatch.setenv("FORCE_BF16", "0")
    assert has_bfloat16() is has_bfloat16("meta") is False


@pytest.mark.parametrize("answer", [True, False])
def test_torch_is_asked_about_a_gpu(monkeypatch, answer):
    monkeypatch.delenv("FORCE_BF16", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: answer)
    assert has_bfloat16("cuda:0") is answer
