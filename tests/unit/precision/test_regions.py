"""Parts of a model compute in half precision as a whole, and look the same from outside."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from inc_torch.export import adorn
from inc_torch.inference import fuse_half_precision
from inc_torch.precision import (
    compute_in_float,
    compute_regions,
    describe_bfloat16,
    layers_of,
    operations_of,
    rebuild_bfloat16,
    regions_of,
    ties_of,
)
from inc_torch.precision._casting import cast
from inc_torch.precision._folding import FOLLOWERS
from inc_torch.precision._packed import SLOT

LOW, FULL = torch.bfloat16, torch.float32


class Block(nn.Module):
    def __init__(self, size=64):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks with a table of float32 added, a Parameter of its own, and a head."""

    def __init__(self, size=64):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(10, size)
        self.start = nn.Parameter(torch.randn(1, 1, size))
        self.register_buffer("places", torch.randn(8, size), persistent=False)
        self.blocks = nn.ModuleList([Block(size), Block(size)])
        self.head = nn.Linear(size, 3)
        self.seen = []

    def forward(self, words, *, scale=None):
        x = torch.cat([self.start.expand(len(words), -1, -1), self.words(words)], 1)
        x = x + self.places[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
            self.seen.append(x.dtype)
        return self.head(x if scale is None else x * scale)


WORDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def low(model, names=None):
    able = [name for name, reason in operations_of(model).items() if reason is None]
    compute_regions(model, regions_of(model, able if names is None else names, []))
    return model


def close(one, other, at_least=0.9999):
    return F.cosine_similarity(one.flatten().double(), other.flatten().double(), 0) >= at_least


# ------------------------------------------------------------------------------ which


@pytest.mark.parametrize(
    ("float_names", "regions"),
    [
        ([], [""]),
        (["head"], ["words", "blocks.0", "blocks.1"]),
        (["blocks.1.up"], ["words", "blocks.0", "blocks.1.down", "head"]),
        (["words", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"], ["head"]),
        (["words", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head"], []),
    ],
)
def test_the_greatest_parts_without_float_operations_are_regions(float_names, regions):
    model = Net()
    names = list(operations_of(model))
    assert regions_of(model, [name for name in names if name not in float_names], float_names) == regions


def test_a_module_that_stays_splits_the_part_that_it_is_in():
    model = Net()
    assert regions_of(model, list(operations_of(model)), ["blocks.0.norm"]) == [
        "words",
        "blocks.0.up",
        "blocks.0.down",
        "blocks.1",
        "head",
    ]


def test_what_shares_a_weight_with_a_float_module_stays():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2), nn.Linear(2, 4, bias=False))
    model[2].weight = model[0].weight
    assert regions_of(model, ["0", "1"], ["2"]) == ["1"]
    assert regions_of(model, ["0", "1", "2"], []) == [""]


def test_ties_are_found_through_others():
    layers = [nn.Linear(2, 2) for _ in range(4)]
    layers[2].weight, layers[2].bias = layers[0].weight, layers[3].bias
    assert ties_of(nn.Sequential(*layers), ["0", "1", "2", "3"]) == [["0", "2", "3"], ["1"]]


def test_what_is_computed_anew_or_compiled_cannot():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(model[1])
    model[3].forward = model[3].forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about TorchScript
        model.append(torch.jit.trace(nn.Linear(4, 4), torch.ones(1, 4)))
    assert operations_of(model) == {
        "0": None,
        "2": None,
        "3": "its forward was replaced on the instance",
        "4": "it is a compiled program, whose types are fixed",
    }
    assert operations_of(model, lambda module: "it stays" if module is model[2] else None)["2"] == "it stays"


# ------------------------------------------------------------------------------ how


def test_values_stay_in_bfloat16_inside_and_are_float32_outside():
    model = low(Net())
    model.places = model.places.to(LOW)
    assert model(WORDS).dtype is FULL
    assert model.seen == [LOW, LOW]


def test_a_table_of_float32_is_no_error_and_keeps_its_digits():
    model = Net()
    expected, places = model(WORDS), model.places.clone()
    low(model)
    assert model.places.dtype is FULL
    assert torch.equal(model.places, places)
    assert close(model(WORDS), expected)
    assert model.start.dtype is LOW


def test_inputs_may_be_float32_and_by_keyword():
    model = Net()
    expected = model(WORDS, scale=torch.full((1,), 0.5))
    assert close(low(model)(WORDS, scale=torch.full((1,), 0.5)), expected)


def test_the_objects_names_and_signature_stay():
    model = Net()
    parameters, names, calls = list(model.parameters()), list(model.state_dict()), []
    handle = model.blocks[0].up.register_forward_hook(lambda *_: calls.append(1))
    low(model)
    model(WORDS)
    handle.remove()
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert calls == [1]
    assert isinstance(model, Net) and isinstance(model.head, nn.Linear) and type(model).__name__ == "Net"
    assert list(inspect.signature(model.forward).parameters) == ["words", "scale"]


def test_it_is_undone():
    model = low(Net())
    inputs = model(WORDS)
    compute_in_float(model)
    assert type(model) is Net and type(model.blocks[0].up) is nn.Linear
    assert {parameter.dtype for parameter in model.parameters()} == {FULL}
    assert close(model(WORDS), inputs)
    assert not any("low_dtype" in module.__dict__ or SLOT in module.__dict__ for module in model.modules())


def test_the_dtype_of_the_model_is_that_of_its_outputs():
    model = low(Net())
    model.double()
    assert model(WORDS).dtype is torch.float64
    assert model.head.weight.dtype is LOW and model.blocks[0].norm.weight.dtype is LOW
    model.to(LOW)
    assert model(WORDS).dtype is LOW
    model.float()
    assert model(WORDS).dtype is FULL


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same(duplicate):
    model = low(Net())
    with torch.no_grad():
        expected = model(WORDS)  # weights are reordered by now
        adorn(model)
        other = duplicate(model)
        assert all(module.__dict__[SLOT].weight is None for module in other.modules() if SLOT in module.__dict__)
        assert torch.equal(other(WORDS), expected)
    assert describe_bfloat16(other) == {"": "Net"}


def test_a_description_rebuilds_parts():
    model = Net()
    compute_regions(model, ["blocks.0", "head"])
    description = describe_bfloat16(model)
    assert description == {"blocks.0": "Block", "head": "Linear"}
    other = Net()
    rebuild_bfloat16(other, description)
    rebuild_bfloat16(other, description)  # a second time changes nothing
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(WORDS), model(WORDS))
    assert layers_of(other) == dict.fromkeys(("blocks.0.up", "blocks.0.down", "head"), "bfloat16")


def test_float16_is_described_as_such():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    compute_regions(model, ["1"], torch.float16)
    assert describe_bfloat16(model) == {"1": "float16 Linear"}
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    rebuild_bfloat16(other, {"1": "float16 Linear"})
    assert other[1].weight.dtype is torch.float16 and other(torch.ones(1, 4)).dtype is FULL


def test_batch_normalization_keeps_its_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding="same"))
    model(torch.randn(4, 3, 9, 9))
    model.eval()
    images = torch.randn(2, 3, 9, 9)
    expected, mean = model(images), model[1].running_mean.clone()
    low(model)
    assert model[1].running_mean.dtype is FULL and torch.equal(model[1].running_mean, mean)
    assert close(model(images), expected)


def test_it_can_be_trained_on():
    model = low(Net())
    model(WORDS).square().mean().backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {LOW}
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# ------------------------------------------------------------------------------ reordered weights


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (nn.Linear(96, 64), [(5, 96), (2, 7, 96), (96,)]),
        (nn.Linear(96, 64, bias=False), [(1, 96)]),
        (nn.Conv2d(16, 32, 3, padding=1), [(1, 16, 9, 9), (2, 16, 5, 7), (16, 6, 6)]),
        (nn.Conv2d(32, 32, 3, stride=2, groups=4, bias=False), [(1, 32, 9, 9), (3, 32, 12, 8)]),
        (nn.Conv2d(16, 32, 3, dilation=2, padding="same"), [(1, 16, 9, 9)]),
        (nn.Conv2d(16, 32, 3, padding=1, padding_mode="reflect"), [(1, 16, 9, 9)]),
    ],
)
def test_reordered_weights_give_what_others_give(layer, shapes):
    reference = copy.deepcopy(layer).to(LOW)
    compute_regions(layer, [""])
    for shape in shapes:
        values = torch.randn(shape)
        with torch.no_grad():
            expected = reference(values.to(LOW)).float()
            assert torch.allclose(layer(values), expected, rtol=2e-2, atol=2e-2)


def test_a_changed_weight_is_reordered_again():
    layer = nn.Linear(96, 64)
    compute_regions(layer, [""])
    with torch.no_grad():
        layer(torch.ones(1, 96))
        first = layer.__dict__[SLOT].weight
        layer(torch.ones(1, 96))
        assert first is not None and layer.__dict__[SLOT].weight is first
        layer.weight.zero_()
        assert torch.equal(layer(torch.ones(1, 96))[0], layer.bias.float())
        layer.weight = nn.Parameter(torch.ones_like(layer.weight))
        assert torch.allclose(layer(torch.ones(1, 96))[0], 96 + layer.bias.float(), rtol=1e-2)


def test_a_forward_with_gradients_uses_no_reordered_weight():
    layer = nn.Linear(96, 64)
    compute_regions(layer, [""])
    layer(torch.ones(1, 96)).sum().backward()
    assert layer.__dict__.get(SLOT) is None
    assert layer.weight.grad.abs().sum() > 0


def test_transforms_and_compilation_go_through():
    layer = nn.Linear(96, 64)
    compute_regions(layer, [""])
    rows = torch.randn(3, 96)
    with torch.no_grad():
        expected = layer(rows)
        assert torch.allclose(torch.func.vmap(layer)(rows), expected, rtol=2e-2, atol=2e-2)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(rows), expected, rtol=2e-2, atol=2e-2)


# ------------------------------------------------------------------------------ casting


@dataclasses.dataclass
class Pair:
    value: torch.Tensor
    name: str
    nothing: None = None


def test_outputs_of_transformers_and_dataclasses_stay_what_they_are():
    output = SequenceClassifierOutput(logits=torch.ones(2, dtype=LOW), hidden_states=(torch.ones(1, dtype=LOW),))
    made = cast(output, FULL)
    assert type(made) is SequenceClassifierOutput
    assert made.logits.dtype is FULL and made["hidden_states"][0].dtype is FULL and made.loss is None
    pair = cast(Pair(torch.ones(1), "a"), LOW)
    assert pair.value.dtype is LOW and pair.name == "a"
    same = Pair(torch.ones(1), "a")
    assert cast(same, FULL) is same


def test_a_mask_of_the_least_float32_has_a_softmax_in_bfloat16():
    mask = torch.full((2, 2), torch.finfo(FULL).min)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, mask):
            return (self.layer(x) * 0 + mask).softmax(-1)

    assert torch.equal(low(Masked())(torch.ones(2, 2), mask), torch.full((2, 2), 0.5))


def test_integers_and_codes_are_not_cast():
    values = {"ids": torch.ones(1, dtype=torch.int64), "codes": torch.ones(1).to(torch.float8_e4m3fn)}
    made = cast(values, LOW)
    assert made["ids"].dtype is torch.int64 and made["codes"].dtype is torch.float8_e4m3fn


# ------------------------------------------------------------------------------ convolutions and what follows them


class Residual(nn.Module):
    """A ReLU is used again and again, and what it and a normalization return is changed in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.two, self.other = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.norm(self.one(x)))
        x -= 0.5
        x = self.relu(x)
        y = self.other(self.two(x))
        y += x - 1
        return self.relu(y)


def trained():
    model = Residual()
    with torch.no_grad():
        for norm in (model.norm, model.other):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        for _ in range(3):
            model(torch.randn(4, 16, 8, 8))
    return model.eval()


def fused(model):
    compute_regions(model, [""])
    fuse_half_precision(model)
    return model


def kernels(model, images):
    with torch.no_grad(), torch.profiler.profile() as profile:
        output = model(images)
    return output, [event.key for event in profile.key_averages()]


def test_a_convolution_normalizes_and_rectifies_too():
    images = torch.randn(2, 16, 8, 8)
    model = trained()
    expected = model(images)
    state = list(model.state_dict())
    output, seen = kernels(fused(model), images)
    assert close(output, expected)
    assert "aten::batch_norm" not in seen and "mkldnn::_convolution_pointwise" in seen
    assert list(model.state_dict()) == state


@pytest.mark.parametrize(
    "why", ["gradients", "training", "hook on it", "hook on what follows", "called alone", "copied"]
)
def test_it_does_so_only_where_nobody_looks(why):
    images = torch.randn(2, 16, 8, 8)
    model = fused(trained())
    plain = trained()
    compute_regions(plain, [""])
    if why == "copied":
        model = copy.deepcopy(model)
        assert "aten::batch_norm" not in kernels(model, images)[1]
        with torch.no_grad():
            model.norm.weight *= -1
            plain.norm.weight *= -1
        assert close(kernels(model, images)[0], plain(images))
        return
    if why == "gradients":
        assert torch.equal(model(images), plain(images))
        return
    seen = []
    if why == "training":
        model.train(), plain.train()
    elif why == "hook on it":
        model.one.register_forward_hook(lambda module, args, output: seen.append(output))
    elif why == "hook on what follows":
        model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        if why == "called alone":
            seen.append(model.one(images))
        expected = plain.one(images)
        assert close(model(images), plain(images))
    for tensor in seen:
        assert close(tensor, expected)


def test_changed_statistics_are_folded_again():
    images = torch.randn(2, 16, 8, 8)
    model, plain = fused(trained()), trained()
    compute_regions(plain, [""])
    with torch.no_grad():
        model(images)
        for each in (model, plain):
            each.norm.running_mean += 1
            each.norm.weight *= -1
        assert close(model(images), plain(images))
    compute_in_float(model)
    assert type(model.norm) is nn.BatchNorm2d and type(model.relu) is nn.ReLU
    assert not any(FOLLOWERS in module.__dict__ for module in model.modules())
