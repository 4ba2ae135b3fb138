"""The mean diagonal of the Hessian: against its exact value, found in other ways, and what it leaves as it was."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inc_torch.core.batches import Inputs
from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.quantizers import hessian_traces

EXACT = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text(encoding="utf-8"))["hawq"][
    "exact_mean_diagonal_of_hessian"
]


class TwoLayers(nn.Module):
    """The model of the vector; other functions between its layers show what cannot be differentiated."""

    def __init__(self, sizes=(4, 6, 3), between=torch.tanh) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:])
        self.between = between

    def forward(self, x):
        return self.fc2(self.between(self.fc1(x)))


def batch_of_the_vector():
    generator = torch.Generator().manual_seed(0)
    return Inputs((torch.randn(16, 4, generator=generator),)), torch.randint(0, 3, (16,), generator=generator)


def by_differences(weight: torch.Tensor, loss) -> float:
    """The mean of ``(L(w + h) - 2 L(w) + L(w - h)) / h**2`` over all elements; ``loss`` reads ``weight``, float64."""
    step, values = 1e-4, weight.data.view(-1)
    sums = []
    with torch.no_grad():
        for index, value in enumerate(values.tolist()):
            around = []
            for moved in (value + step, value - step, value):
                values[index] = moved
                around.append(loss().item())
            sums.append((around[0] - 2 * around[2] + around[1]) / step**2)
    return sum(sums) / len(sums)


PRECISE = {"iterations": 2000, "tolerance": 0.02}


def squared(output, labels):
    return (output - labels).square().sum()


def orthogonal() -> torch.Tensor:
    """A batch whose features do not meet, so that the Hessian of a squared loss is diagonal."""
    return torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])


ZEROS = torch.zeros(3, 4)


def linear() -> nn.Linear:
    return nn.Linear(2, 4)


@pytest.fixture
def differentiations(monkeypatch):
    """How often something was differentiated."""
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(0) or grad(*args, **kwargs))
    return calls


# ------------------------------------------------------------------------------ values


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_diagonal_of_the_vector(seed):
    torch.manual_seed(0)
    inputs, labels = batch_of_the_vector()
    traces = hessian_traces(
        TwoLayers(), ["fc1", "fc2"], inputs, labels, F.cross_entropy, seed=seed, iterations=1500, tolerance=0.03
    )
    assert traces == pytest.approx({name: EXACT[f"{name}.weight"] for name in ("fc1", "fc2")}, rel=0.15)


def test_a_diagonal_hessian_is_exact():
    traces = hessian_traces(linear(), [""], Inputs((orthogonal(),)), ZEROS, squared, seed=0)
    assert traces == {"": pytest.approx(2 * (5 + 9) / 2, rel=1e-6)}  # 2 * sum(x**2) for each feature


def test_a_loss_that_is_linear_in_the_weights_has_none():
    inputs = Inputs((orthogonal(),))
    assert hessian_traces(linear(), [""], inputs, None, lambda output, _: output.sum(), seed=0) == {"": 0.0}
    model = TwoLayers((2, 4, 4), nn.Identity())  # linear in each weight, but not in both
    traces = hessian_traces(model, ["fc1", "fc2"], inputs, None, lambda output, _: output.sum(), seed=0)
    assert traces == pytest.approx({"fc1": 0, "fc2": 0}, abs=0.3)
    one = hessian_traces(model, ["fc2"], inputs, ZEROS, lambda output, _: output.mean(), seed=0)
    assert one == {"fc2": 0.0}


def test_a_weight_that_curves_beside_one_that_does_not():
    model = nn.ModuleDict({"curved": linear(), "straight": linear()})
    model.forward = lambda x: (model["curved"](x), model["straight"](x))
    loss = lambda outputs, labels: squared(outputs[0], labels) + outputs[1].sum()  # noqa: E731
    traces = hessian_traces(model, ["straight", "curved"], Inputs((orthogonal(),)), ZEROS, loss, seed=0)
    assert traces == {"straight": 0.0, "curved": pytest.approx(14)}


def test_layers_of_one_shape_against_differences():
    model = TwoLayers((3, 3, 3)).double()
    values, labels = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    traces = hessian_traces(model, ["fc2", "fc1"], Inputs((values,)), labels, squared, seed=0, **PRECISE)
    assert list(traces) == ["fc2", "fc1"]
    for name, trace in traces.items():
        expected = by_differences(model.get_submodule(name).weight, lambda: squared(model(values), labels))
        assert trace == pytest.approx(expected, rel=0.08)


class Attention(nn.Module):
    """One head over projections of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        query = self.query(x)
        return F.scaled_dot_product_attention(query, query, self.value(x))


def test_fused_attention_is_taken_apart():
    model, values = Attention().double(), 2 * torch.randn(2, 1, 5, 4, dtype=torch.float64)
    traces = hessian_traces(model, ["query", "value"], Inputs((values,)), 0, squared, seed=0, **PRECISE)
    for name, trace in traces.items():
        expected = by_differences(model.get_submodule(name).weight, lambda: squared(model(values), 0))
        assert trace == pytest.approx(expected, rel=0.15)


def test_convolutions_and_embeddings():
    convolution, image = nn.Conv1d(1, 2, 1), torch.tensor([[[1.0, 2.0, 3.0]]])
    traces = hessian_traces(convolution, [""], Inputs((image,)), torch.zeros(1), squared, seed=0)
    assert traces[""] == pytest.approx(2 * 14)
    for sparse in (False, True):
        rows = nn.Embedding(4, 2, sparse=sparse)
        traces = hessian_traces(rows, [""], Inputs((torch.tensor([0, 0, 1]),)), torch.zeros(1), squared, seed=0)
        assert traces[""] == pytest.approx(2 * 3 / 4)  # of four rows one is used twice and one once


def test_the_loss_and_the_labels_are_those_given():
    inputs = Inputs((orthogonal(),))
    quartic = hessian_traces(linear(), [""], inputs, ZEROS, lambda output, _: output.pow(4).sum(), seed=0)
    layer = linear()
    with torch.no_grad():
        layer.weight.fill_(1.0), layer.bias.zero_()
    near, far = (
        hessian_traces(layer, [""], inputs, labels, lambda y, t: (y - t).pow(4).sum(), seed=0)[""]
        for labels in (orthogonal().sum(1, keepdim=True).expand(3, 4), ZEROS)
    )
    assert near == pytest.approx(0, abs=1e-6)
    assert far == pytest.approx(12 * (1 + 16 + 81) / 2)  # 12 * y**2 * x**2 with y = x
    assert quartic[""] not in (near, far)


def test_a_shared_weight_counts_for_each_name():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    model[1].weight = model[0].weight
    values = torch.randn(4, 2, dtype=torch.float64)
    traces = hessian_traces(model, ["0", "1"], Inputs((values,)), 0, squared, seed=0, **PRECISE)
    expected = by_differences(model[0].weight, lambda: squared(model(values), 0))
    assert traces["0"] == traces["1"] == pytest.approx(expected, rel=0.08)


# ------------------------------------------------------------------------------ when it ends


@pytest.mark.parametrize("sign", [1, -1])
def test_it_ends_when_samples_agree(differentiations, sign):
    loss = lambda output, labels: sign * squared(output, labels)  # noqa: E731
    traces = hessian_traces(linear(), [""], Inputs((orthogonal(),)), ZEROS, loss, seed=0)
    assert traces[""] == pytest.approx(sign * 14, rel=1e-6)
    assert len(differentiations) == 1 + 10


def test_the_standard_error_decides(differentiations):
    torch.manual_seed(0)
    model, (inputs, labels) = TwoLayers(), batch_of_the_vector()
    counts, estimates = [], []
    for tolerance in (0.5, 0.1):
        differentiations.clear()
        estimates.append(
            hessian_traces(
                model, ["fc2"], inputs, labels, F.cross_entropy, seed=0, tolerance=tolerance, iterations=9999
            )
        )
        counts.append(len(differentiations) - 1)
    assert 10 <= counts[0] < 20 < counts[1] < 200  # one sample is off by about 0.95 of the value: (0.95 / 0.1)**2 = 90
    assert estimates[1]["fc2"] == pytest.approx(EXACT["fc2.weight"], rel=0.3)


def test_there_is_a_last_iteration(differentiations):
    inputs, labels = batch_of_the_vector()
    hessian_traces(TwoLayers(), ["fc1"], inputs, labels, F.cross_entropy, seed=0, tolerance=0.0, iterations=23)
    assert len(differentiations) == 1 + 23
    with pytest.raises(ConfigError, match="iterations=0: expected a number of samples, at least 1"):
        hessian_traces(TwoLayers(), ["fc1"], inputs, labels, F.cross_entropy, seed=0, iterations=0)


def test_a_seed_decides_and_no_other_random_number():
    inputs, labels = batch_of_the_vector()
    model, before = TwoLayers(), torch.get_rng_state()

    def once(seed):
        return hessian_traces(model, ["fc1"], inputs, labels, F.cross_entropy, seed=seed, iterations=12)

    first = once(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert once(3) == first
    assert once(4) != first


# ------------------------------------------------------------------------------ what stays as it was


def test_the_model_is_as_before():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    gradient = model[3].weight.grad = torch.ones(4, 4)
    state, required = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]

    def assert_unchanged():
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        assert [p.requires_grad for p in model.parameters()] == required
        assert [module.training for module in model.modules()] == [True, True, False, True, True]
        assert model[3].weight.grad is gradient and torch.equal(gradient, torch.ones(4, 4))
        assert model[0].weight.grad is None and model[0].bias.grad is None

    random = torch.get_rng_state()
    with torch.no_grad():
        traces = hessian_traces(model, ["3", "0"], Inputs((orthogonal(),)), ZEROS, squared, seed=0)
    assert list(traces) == ["3", "0"]
    assert_unchanged()
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(ModelError):
        hessian_traces(model, ["3"], Inputs((orthogonal(),)), ZEROS, lambda output, _: output, seed=0)
    assert_unchanged()


def test_frozen_models_and_inputs_that_are_written_into():
    model = nn.Sequential(nn.ReLU(inplace=True), linear()).requires_grad_(False)
    inputs = Inputs((-orthogonal() + 1,))
    before = inputs.args[0].clone()
    expected = 2 * before.relu().square().sum().item() / 2
    traces = hessian_traces(model, ["1"], inputs, ZEROS, squared, seed=0, **PRECISE)
    assert traces["1"] == pytest.approx(expected, rel=0.08)
    assert torch.equal(inputs.args[0], before)
    assert not model[1].weight.requires_grad


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiled_models_run_as_they_are_written():
    model = torch.compile(nn.Sequential(linear(), torch.compile(nn.Identity(), backend="eager")), backend="aot_eager")
    traces = hessian_traces(model, ["0"], Inputs((orthogonal(),)), ZEROS, squared, seed=0)
    assert traces["0"] == pytest.approx(14)


# ------------------------------------------------------------------------------ what is refused


class Once(torch.autograd.Function):
    """A cube whose gradient is computed outside of the graph."""

    @staticmethod
    def forward(context, values):
        context.save_for_backward(values)
        return values**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        return 3 * context.saved_tensors[0] ** 2 * gradient


def fused(values):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        heads = values.view(1, 1, *values.shape)
        return F.scaled_dot_product_attention(heads, heads, heads).view(values.shape)


@pytest.mark.parametrize(
    ("between", "reason"),
    [(Once.apply, "an operation is marked once_differentiable"), (fused, "derivative for .* is not implemented")],
)
def test_operations_without_a_second_derivative(between, reason):
    model, values = TwoLayers((4, 8, 3), between).double(), torch.randn(16, 4, dtype=torch.float64)
    with pytest.raises(ModelError, match=rf"weight of module 'fc1' cannot be differentiated again \({reason}\)"):
        hessian_traces(model, ["fc1", "fc2"], Inputs((values,)), 0, squared, seed=0)
    above = hessian_traces(model, ["fc2"], Inputs((values,)), 0, squared, seed=0)
    expected = by_differences(model.fc2.weight, lambda: squared(model(values), 0))
    assert above["fc2"] == pytest.approx(expected, rel=0.2)


def test_a_loss_that_does_not_depend_on_a_weight():
    model, inputs = nn.ModuleDict({"used": linear(), "unused": linear()}), Inputs((orthogonal(),))
    model.forward = model["used"].forward
    with pytest.raises(ModelError, match="does not depend on the weight of module 'unused'"):
        hessian_traces(model, ["used", "unused"], inputs, ZEROS, squared, seed=0)
    with pytest.raises(ModelError, match="does not depend on the weight of module 'used'"):
        hessian_traces(model, ["used"], inputs, ZEROS, lambda output, _: output.detach().sum(), seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fc3", r"TwoLayers has no module 'fc3' to measure the weight of\. Did you mean 'fc[12]'\?"),
        ("", r"The weight of module '' \(TwoLayers\) is NoneType: expected a Parameter of floating numbers"),
    ],
)
def test_a_module_without_a_weight(name, message):
    with pytest.raises(ModelError, match=message):
        hessian_traces(TwoLayers(), [name], *batch_of_the_vector(), F.cross_entropy, seed=0)


@pytest.mark.parametrize(
    ("loss", "found"),
    [(lambda output, _: output, r"float32 \[3, 4\]"), (lambda output, _: output.sum().item(), "float")],
)
def test_a_loss_that_is_not_one_number(loss, found):
    with pytest.raises(ModelError, match=f"The loss is {found}: expected a tensor with one number"):
        hessian_traces(linear(), [""], Inputs((orthogonal(),)), None, loss, seed=0)


@pytest.mark.parametrize(
    "loss",
    [lambda output, _: (output - output.detach()).norm(), lambda output, _: math.nan * output.square().sum()],
    ids=["norm of zeros", "nan"],
)
def test_a_second_derivative_that_is_not_finite(loss):
    with pytest.raises(ModelError, match="second derivative of the loss by the weight of module '' holds NaN"):
        hessian_traces(linear(), [""], Inputs((orthogonal(),)), None, loss, seed=0)


def test_nothing_to_measure_is_no_error():
    assert hessian_traces(linear(), [], Inputs((orthogonal(),)), ZEROS, squared, seed=0) == {}
