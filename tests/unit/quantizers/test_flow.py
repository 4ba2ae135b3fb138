"""Who feeds whom, and what forbids folding a scale into it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch.quantizers import FloatType, QuantRule, QuantSpec, prepare_fake_quant
from inc_torch.quantizers._flow import trace_flow
from inc_torch.quantizers._producers import absorbing_axis, divide_output_

X = torch.randn(3, 4)
IMAGE = torch.randn(2, 4, 6, 6)


def flow_of(model, *inputs, spec=None):
    prepare_fake_quant(model, spec or QuantSpec())
    return trace_flow(model, lambda model: model(*(inputs or (X,))))


class Net(nn.Module):
    """A norm, two layers, and what is done between them."""

    def __init__(self, between, norm=None):
        super().__init__()
        self.norm, self.a, self.b = norm or nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.between = between

    def forward(self, x):
        return self.between(self, self.norm(x))


FOLDABLE = {
    "directly": lambda net, h: net.a(h),
    "by name": lambda net, h: net.a(input=h),
    "relu": lambda net, h: net.a(F.relu(h)),
    "relu in place": lambda net, h: net.a(F.relu_(h)),
    "leaky_relu": lambda net, h: net.a(F.leaky_relu(h, 0.1)),
    "dropout": lambda net, h: net.a(F.dropout(h, 0.5, training=net.training)),
    "cast": lambda net, h: net.a(h.to(torch.float64).float()),
    "shape": lambda net, h: net.a(h.clone()) * h.shape[0],
}


@pytest.mark.parametrize("between", FOLDABLE.values(), ids=FOLDABLE)
def test_a_norm_that_feeds_a_layer_absorbs(between):
    flow = flow_of(Net(between))
    assert flow.groups == {"norm": ("a",)}
    assert flow.refused["b"] in ("it did not run", "no norm or layer feeds it directly")


PRODUCTS = {
    "with a number": (lambda net, h: net.a(3 * h), ("a",)),
    "with a tensor of its own": (lambda net, h: net.a(torch.sigmoid(net.b.weight[0].detach()) * h), ("a",)),
    "with itself": (lambda net, h: net.a(h * h), None),
    "with what is more": (lambda net, h: net.a(h[:, None] * torch.ones(1, 2, 1)), None),
}


@pytest.mark.parametrize(("between", "expected"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_follows_its_one_factor(between, expected):
    found = flow_of(Net(between)).groups.get("norm")
    assert found == expected


def test_a_gated_layer_feeds_the_next_one_through_the_gate():
    class Gated(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.gate, self.up, self.down, self.act = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4), act

        def forward(self, x):
            return self.down(self.act(self.gate(x)) * self.up(x))

    assert flow_of(Gated(F.silu)).groups == {"up": ("down",)}
    # A product of two layers could take a scale from either, and relu hands on that of its own.
    for act in (F.relu, lambda x: x):
        flow = flow_of(Gated(act))
        assert flow.groups == {}
        assert "aten.mul" in flow.refused["down"] or flow.refused["down"] == "no norm or layer feeds it directly"


def test_all_layers_that_read_a_norm_are_one_group():
    assert flow_of(Net(lambda net, h: net.a(h) + net.b(F.relu(h)))).groups == {"norm": ("a", "b")}


def test_a_layer_feeds_a_layer():
    assert flow_of(Net(lambda net, h: net.b(net.a(h)))).groups == {"norm": ("a",), "a": ("b",)}


def test_a_layer_left_in_float_can_absorb_but_not_be_smoothed():
    spec = QuantSpec(rules=(QuantRule("name", "a", FloatType.FLOAT32),))
    flow = flow_of(Net(lambda net, h: net.b(net.a(h))), spec=spec)
    assert flow.groups == {"a": ("b",)}
    assert flow.refused == {}


FORBIDDEN = {
    "residual": (lambda net, h: net.a(h) + h, "'norm', which feeds it, also feeds aten.add"),
    "view": (lambda net, h: net.a(h) + net.b(h.view(-1, 4)).sum(), "also feeds aten.view"),
    "slice": (lambda net, h: net.a(h) * h[0, 0], "also feeds aten.select"),
    "written": (lambda net, h: net.a(h.add_(1.0)), "also feeds aten.add_"),
    "output": (lambda net, h: (net.a(h), {"hidden": h}), "also feeds what outlives the forward"),
    "cached": (lambda net, h: setattr(net, "kept", h) or net.a(h), "also feeds what outlives the forward"),
    "to integers": (lambda net, h: net.a(h) + h.to(torch.int64), "also feeds aten._to_copy"),
    "hardtanh": (lambda net, h: net.a(h) + net.b(F.hardtanh(h)), "also feeds aten.hardtanh"),
    "functional": (lambda net, h: net.a(h) + F.linear(h, net.b.weight), "also feeds aten.mm"),
    "data": (lambda net, h: net.a(h) + h.data, "also feeds aten.add"),
    "weight read": (lambda net, h: net.a(h) + net.a.weight.sum(), "its weight is also read outside its forward"),
    "norm read": (lambda net, h: net.a(h) + net.norm.weight, "'norm', which feeds it: its weight is also read outside"),
    "two producers": (lambda net, h: net.b(h) + net.b(net.a(h)), "'b', which reads the same: it reads several tensors"),
}


@pytest.mark.parametrize(("between", "reason"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_nothing_is_folded_where_something_else_would_see_it(between, reason):
    flow = flow_of(Net(between))
    assert "norm" not in flow.groups
    assert reason in flow.refused["a"]


class OnePlusWeight(nn.Module):
    """Multiplies with ``1 + weight``."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return F.rms_norm(x, (4,)) * (1 + self.weight)


OnePlusNorm = type("OnePlusNorm", (OnePlusWeight,), {})


def test_a_norm_is_believed_only_if_its_output_follows_its_weight():
    flow = flow_of(Net(FOLDABLE["directly"], OnePlusNorm()))
    assert flow.refused["a"] == "the output of 'norm', which feeds it, does not follow its weight"


def test_a_norm_without_weight_absorbs_nothing():
    flow = flow_of(Net(FOLDABLE["directly"], nn.LayerNorm(4, elementwise_affine=False)))
    assert flow.refused["a"] == "'norm', which feeds it, has no weight"


def test_shared_norms_and_shared_layers_absorb_nothing():
    model = Net(FOLDABLE["directly"])
    model.other = nn.LayerNorm(4)
    model.other.weight = model.norm.weight
    assert flow_of(model).refused["a"] == "'norm', which feeds it: its weight is shared with another module"
    model = Net(FOLDABLE["directly"])
    model.b.weight = model.a.weight
    assert flow_of(model).refused["a"] == "its weight is shared with another module"


def test_channels_must_lie_along_the_same_axis():
    """The channels of a layer norm are the last axis, those of a convolution the one before."""
    model = nn.Sequential(nn.LayerNorm(4), nn.Conv1d(4, 4, 1))
    flow = flow_of(model, torch.randn(2, 4, 4))
    assert flow.refused["1"] == "'0', which feeds it, also feeds '1', which takes another axis for channels"


def test_a_wrapper_that_hands_a_tensor_on_hides_nothing():
    """The wrapper is called a norm; what reads its output reads that of the layer inside."""

    class PreNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.reader = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            hidden = self.inner(x)
            self.reader(hidden)
            return hidden

    flow = flow_of(nn.Sequential(PreNorm(), nn.Linear(4, 4)))
    assert flow.groups == {}
    assert "'0', which hands it on" in flow.refused["0.reader"]


def test_convolutions_of_all_kinds():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 1, groups=4),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 8, 1, groups=2),
        nn.ConvTranspose2d(8, 6, 2, groups=2),
        nn.InstanceNorm2d(6, affine=True),
        nn.Conv2d(6, 4, 3),
    )
    flow = flow_of(model, IMAGE)
    assert flow.groups == {"1": ("3",), "4": ("5",), "5": ("6",), "7": ("8",)}


def test_the_model_is_as_before():
    model = Net(lambda net, h: net.b(net.a(h)), nn.BatchNorm1d(4))
    model.b.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    flow_of(model)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert [model.training, model.a.training, model.b.training] == [True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def inference(model):
    with torch.inference_mode():
        model(X)


def autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        model(X)


@pytest.mark.parametrize("run", [inference, autocast])
def test_a_run_in_another_mode(run):
    model = Net(lambda net, h: net.b(net.a(h)))
    prepare_fake_quant(model, QuantSpec())
    assert trace_flow(model, run).groups == {"norm": ("a",), "a": ("b",)}


def test_compiled_models_are_watched_as_well():
    model = Net(lambda net, h: net.a(h) + net.b(net.a(F.relu(h))))
    prepare_fake_quant(model, QuantSpec())
    compiled = torch.compile(model, backend="eager")
    expected = trace_flow(model, lambda model: model(X))
    assert trace_flow(compiled, lambda model: model(X)) == expected
    torch.compiler.reset()


def test_a_run_of_several_batches():
    model = Net(lambda net, h: net.a(h))
    prepare_fake_quant(model, QuantSpec())
    assert trace_flow(model, lambda model: [model(X) for _ in range(2)]).groups == {"norm": ("a",)}


LAYERS = {
    "linear": (nn.Linear(4, 6), X, 1),
    "conv": (nn.Conv2d(4, 6, 3, groups=2), IMAGE, 1),
    "conv transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), IMAGE, 1),
    "layer norm": (nn.LayerNorm(4), X, 1),
    "batch norm": (nn.BatchNorm2d(4).eval(), IMAGE, 1),
    "group norm": (nn.GroupNorm(2, 4), IMAGE, 1),
}


@pytest.mark.parametrize(("module", "x", "axis"), LAYERS.values(), ids=LAYERS)
def test_dividing_weights_divides_outputs(module, x, axis):
    before = module(x)
    assert absorbing_axis(module, (x,), {}, before) == axis
    scale = torch.rand(before.shape[1]) + 0.5
    divide_output_(module, scale)
    torch.testing.assert_close(module(x), before / scale.view(-1, *[1] * (x.dim() - 2)))
