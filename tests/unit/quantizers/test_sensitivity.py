"""Errors of the outputs of modules and of models: against the formulas, and where outputs are not plain tensors."""

from __future__ import annotations

import copy
import json
import math
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from inc_torch.core.batches import Inputs
from inc_torch.core.errors import ModelError
from inc_torch.quantizers import (
    ModelErrors,
    OutputError,
    QuantScheme,
    QuantSpec,
    _sensitivity,
    convert,
    enable_fake_quant,
    output_errors,
    prepare_fake_quant,
)
from inc_torch.quantizers._sensitivity import normalised_mse

VECTOR = json.loads((Path(__file__).parents[2] / "vectors" / "quantization.json").read_text(encoding="utf-8"))[
    "metrics"
]["mse_gap"]


class Calls(nn.Module):
    """Calls a child on each of a list of tensors."""

    def __init__(self, child: nn.Module | None = None) -> None:
        super().__init__()
        self.child = child or nn.Identity()

    def forward(self, *tensors):
        return [self.child(tensor) for tensor in tensors]


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


@dataclass
class Pair:
    """What some models return."""

    first: torch.Tensor | None
    second: torch.Tensor


def of(*tensors: torch.Tensor) -> Inputs:
    return Inputs(tensors)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def moved(model: nn.Module, by: float = 0.05) -> nn.Module:
    """A copy whose weights differ a little."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += by * torch.randn_like(parameter)
    return changed


def errors_of(expected: torch.Tensor, found: torch.Tensor) -> OutputError:
    """The error by its definition, from whole tensors."""
    expected, found = expected.detach().double(), found.detach().double()
    ratio = expected.square().sum() / (expected - found).square().sum()
    return OutputError(normalised_mse(expected, found), 10 * math.log10(ratio))


def assert_close(error: OutputError, expected: OutputError) -> None:
    assert error.normalised_mse == pytest.approx(expected.normalised_mse, rel=1e-9, abs=1e-15)
    assert error.signal_to_noise == pytest.approx(expected.signal_to_noise, rel=1e-9)


# ------------------------------------------------------------------------------ outputs of modules


def test_the_normalised_error_of_inc_from_two_batches():
    values, rounded = (torch.tensor(VECTOR[name]) for name in ("fp32", "dequant"))
    table = dict(zip(values.tolist(), rounded.tolist(), strict=True))
    quantized = Calls(Apply(lambda batch: torch.tensor([table[value] for value in batch.tolist()])))
    errors = output_errors(Calls(), quantized, ["child"], [of(values[:3]), of(values[3:])])
    assert errors["child"].normalised_mse == pytest.approx(VECTOR["gap"])
    assert errors["child"].signal_to_noise == pytest.approx(10 * math.log10(21 / 0.5))


def test_outputs_of_all_batches_count_together():
    reference = mlp().double()
    quantized, batches = moved(reference), [torch.randn(size, 4).double() * size for size in (1, 5, 2)]
    errors = output_errors(reference, quantized, ["0", "1", "2"], list(map(of, batches)))
    assert list(errors) == ["0", "1", "2"]
    for depth, error in enumerate(errors.values(), start=1):
        assert_close(error, errors_of(reference[:depth](torch.cat(batches)), quantized[:depth](torch.cat(batches))))


def test_large_outputs_are_compared_in_pieces(monkeypatch):
    reference, batches = mlp(), [of(torch.randn(7, 4))]
    quantized = moved(reference)
    whole = output_errors(reference, quantized, ["0"], batches)
    monkeypatch.setattr(_sensitivity, "_PIECE", 5)
    assert_close(output_errors(reference, quantized, ["0"], batches)["0"], whole["0"])


def test_a_factor_and_an_offset_are_seen_by_the_ratio_alone():
    values = torch.randn(50, dtype=torch.float64) + 3
    factor = output_errors(Calls(), Calls(Apply(lambda x: 1.1 * x)), ["child"], [of(values)])["child"]
    assert factor.normalised_mse == pytest.approx(0, abs=1e-15)
    assert factor.signal_to_noise == pytest.approx(20)
    offset = output_errors(Calls(), Calls(Apply(lambda x: x + 1)), ["child"], [of(values)])["child"]
    assert offset.normalised_mse == pytest.approx(0, abs=1e-15)
    assert offset.signal_to_noise == pytest.approx(10 * math.log10(values.square().mean().item()))


def test_a_small_error_on_a_great_offset_keeps_its_digits():
    values = torch.rand(1000, dtype=torch.float64) + 1e4
    rounded = values + 1e-3 * torch.randn(1000, dtype=torch.float64)
    quantized = Calls(Apply(lambda _: rounded))
    error = output_errors(Calls(), quantized, ["child"], [of(values)])["child"]
    assert error.normalised_mse == pytest.approx(normalised_mse(values, rounded), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, OutputError(0.0, math.inf)),
        (torch.zeros_like, OutputError(0.375, 0.0)),  # 0, 1/2, 1, 1/2 against zeros
        (lambda x: x.masked_fill(x == 2, math.nan), OutputError(math.nan, math.nan)),
        (lambda x: x.masked_fill(x == 2, math.inf), OutputError(math.nan, math.nan)),
        (lambda x: x.masked_fill(x == 2, -math.inf), OutputError(math.nan, math.nan)),
    ],
    ids=["equal", "constant", "nan", "inf", "-inf"],
)
def test_limits_of_the_error(change, expected):
    batches = [of(torch.tensor([0.0, 1.0])), of(torch.tensor([2.0, 1.0]))]
    error = output_errors(Calls(), Calls(Apply(change)), ["child"], batches)["child"]
    assert (error.normalised_mse, error.signal_to_noise) == pytest.approx(
        (expected.normalised_mse, expected.signal_to_noise), nan_ok=True
    )


def test_no_signal_is_minus_infinity():
    error = output_errors(Calls(), Calls(Apply(torch.ones_like)), ["child"], [of(torch.zeros(2))])["child"]
    assert error == OutputError(0.0, -math.inf)
    assert output_errors(Calls(), Calls(), ["child"], [of(torch.zeros(2))])["child"] == OutputError(0.0, math.inf)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, 7 * y),
        lambda y: (torch.arange(3), None, [y, 7 * y]),
        lambda y: {"ids": torch.arange(3), "y": y, "z": 7 * y},
        lambda y: Pair(None, y),
    ],
    ids=["tuple", "nested", "mapping", "dataclass"],
)
def test_of_other_outputs_the_first_floating_tensor_counts(wrap):
    reference, quantized = Calls(Apply(lambda x: wrap(x.sin()))), Calls(Apply(lambda x: wrap(x.cos())))
    values = torch.randn(9)
    assert_close(
        output_errors(reference, quantized, ["child"], [of(values)])["child"], errors_of(values.sin(), values.cos())
    )


def test_every_call_of_a_module_counts():
    reference = Calls(nn.Linear(4, 2)).double()
    quantized, inputs = moved(reference), [torch.randn(3, 4).double(), torch.randn(5, 4).double()]
    error = output_errors(reference, quantized, ["child"], [of(*inputs)])["child"]
    assert_close(error, errors_of(reference.child(torch.cat(inputs)), quantized.child(torch.cat(inputs))))


class Routed(nn.Module):
    """Sends each value to one of two experts, by its sign after an offset."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.positive, self.negative, self.spare, self.both = (nn.Identity() for _ in range(4))
        self.offset = offset

    def forward(self, values):
        route = values + self.offset > 0
        self.both(values + self.offset)
        for expert, chosen in ((self.positive, route), (self.negative, ~route)):
            if chosen.any():
                expert(values[chosen])
        return values


def test_modules_without_a_counterpart_are_missing():
    names, batches = ["both", "positive", "negative", "spare"], [of(torch.tensor([-1.0, 0.5, 1.0]))]
    assert list(output_errors(Routed(0.0), Routed(0.1), names, batches)) == ["both", "positive", "negative"]
    assert list(output_errors(Routed(0.0), Routed(-0.7), names, batches)) == ["both"]  # other shapes
    assert list(output_errors(Routed(0.0), Routed(9.0), names, batches)) == ["both"]  # fewer calls, and other shapes
    agreeing = of(torch.tensor([-20.0, 20.0]))
    assert list(output_errors(Routed(0.0), Routed(9.0), names, [*batches, agreeing])) == ["both"]  # more and fewer


class Repeated(nn.Module):
    """Calls a child several times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.child, self.times = nn.Identity(), times

    def forward(self, values):
        return [self.child(values) for _ in range(self.times)]


@pytest.mark.parametrize(("times", "names"), [((2, 2), ["child"]), ((1, 2), []), ((2, 1), [])])
def test_a_module_called_more_often_in_one_model_is_missing(times, names):
    assert list(output_errors(*map(Repeated, times), ["child"], [of(torch.ones(2))])) == names


def test_operations_in_place_do_not_reach_what_was_seen():
    reference = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    quantized, batch = moved(reference), torch.randn(6, 4)
    expected = errors_of(reference[0](batch), quantized[0](batch))
    assert_close(output_errors(reference, quantized, ["0"], [of(batch)])["0"], expected)


def test_models_that_write_into_their_inputs_are_given_copies():
    model, batch = nn.Sequential(nn.ReLU(inplace=True), nn.Identity()), torch.tensor([-1.0, 2.0])
    negated = nn.Sequential(Apply(lambda x: x.neg_()), nn.Identity())
    inputs = [Inputs(kwargs={"input": batch})]
    error = output_errors(model, Apply(lambda input: negated(input)), [""], inputs)[""]
    assert_close(error, errors_of(torch.tensor([0.0, 2.0]), torch.tensor([1.0, -2.0])))
    errors = ModelErrors(model, inputs)
    assert errors.of(Apply(lambda input: negated(input))) == errors.of(Apply(lambda input: negated(input))) == (17.0,)
    assert batch.tolist() == [-1.0, 2.0]


def test_only_outputs_of_one_batch_are_kept(monkeypatch):
    copies, most = [], 0
    clone = torch.Tensor.clone

    def counting(tensor):
        nonlocal most
        copied = clone(tensor)
        copies.append(weakref.ref(copied))
        most = max(most, sum(reference() is not None for reference in copies))
        return copied

    model = mlp()
    quantized = moved(model)
    monkeypatch.setattr(torch.Tensor, "clone", counting)
    output_errors(model, quantized, ["0", "1", "2"], [of(torch.randn(2, 4)) for _ in range(5)])
    assert len(copies) == 5 * (3 + 2)  # outputs, and the inputs of both models
    assert most == 3 + 1
    most = 0
    output_errors(Repeated(2), Repeated(1), ["child"], [of(torch.randn(2)) for _ in range(5)])
    assert most == 2 + 1  # nor what has no counterpart


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_names_are_those_without_wrappers():
    reference = nn.Sequential(nn.Linear(4, 4), torch.compile(nn.Linear(4, 4), backend="eager"))
    quantized, batch = nn.Sequential(moved(reference[0]), moved(reference[1]._orig_mod)), torch.randn(3, 4)
    errors = output_errors(torch.compile(reference, backend="eager"), quantized, ["0", "1"], [of(batch)])
    assert list(errors) == ["0", "1"]
    assert_close(errors["1"], errors_of(reference[1]._orig_mod(reference[0](batch)), quantized(batch)))


def test_models_are_as_before():
    reference = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.BatchNorm1d(4))
    reference[0].eval()
    quantized = moved(reference)
    state, random = copy.deepcopy(reference.state_dict()), torch.get_rng_state()
    output_errors(reference, quantized, ["1"], [of(torch.randn(3, 4))])
    ModelErrors(reference, [of(torch.ones(3, 4))]).of(quantized)
    for model in (reference, quantized):
        assert [module.training for module in model.modules()] == [True, False, True, True]
        assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(state[name], value) for name, value in reference.state_dict().items())
    assert not torch.equal(torch.get_rng_state(), random)  # by randn above
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        output_errors(reference, quantized, ["1"], [of(torch.randn(3, 5))])
    assert not reference[1]._forward_hooks


def test_dropout_does_not_drop():
    reference, batch = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 4)), torch.randn(3, 4)
    error = output_errors(reference, copy.deepcopy(reference), ["1"], [of(batch)])["1"]
    assert error == OutputError(0.0, math.inf)
    assert ModelErrors(reference, [of(batch)]).of(copy.deepcopy(reference)) == (0.0,)


@pytest.mark.parametrize("place", [0, 1])
def test_a_name_that_a_model_lacks_is_refused(place):
    models = [nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())]
    models[place] = Calls()
    with pytest.raises(ModelError, match="Calls has no module '0' to measure"):
        output_errors(*models, ["0"], [of(torch.ones(1))])
    with pytest.raises(ModelError, match="Did you mean 'child'"):
        output_errors(Calls(), Calls(), ["chid"], [of(torch.ones(1))])


def test_nothing_to_measure_is_no_error():
    assert output_errors(Calls(), Calls(), [], [of(torch.ones(1))]) == {}
    assert output_errors(Calls(), Calls(), ["child"], []) == {}
    assert output_errors(Calls(), Calls(), ["child"], [of(torch.ones(0))]) == {}


def test_int8_modules_err_as_their_simulation_does():
    reference, batch = mlp(), torch.randn(64, 4)
    simulated = copy.deepcopy(reference)
    prepare_fake_quant(simulated, QuantSpec(default=QuantScheme(dynamic=True)))
    int8 = copy.deepcopy(simulated)
    enable_fake_quant(simulated, observe=False)
    convert(int8)
    first, second = (output_errors(reference, model, ["0", "2"], [of(batch)]) for model in (simulated, int8))
    for name in ("0", "2"):
        assert 30 < first[name].signal_to_noise < 60
        assert second[name].signal_to_noise == pytest.approx(first[name].signal_to_noise, rel=1e-3)
        assert second[name].normalised_mse == pytest.approx(first[name].normalised_mse, rel=1e-2)


# ------------------------------------------------------------------------------ outputs of models


def test_the_error_of_a_model_is_a_sum_of_squares_for_each_batch():
    reference, batches = mlp(), [torch.randn(2, 4), torch.randn(5, 4)]
    quantized = moved(reference)
    errors = ModelErrors(reference, list(map(of, batches)))
    expected = [(reference(batch) - quantized(batch)).double().square().sum().item() for batch in batches]
    assert errors.of(quantized) == pytest.approx(expected, rel=1e-6)
    assert errors.of(reference) == (0.0, 0.0)
    assert errors.of(moved(reference, by=1.0))[0] > errors.of(quantized)[0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y, z: (y, [z], torch.arange(2)),
        lambda y, z: {"y": y, "deep": {"z": z}, "n": 3, "mask": y > 0},
        lambda y, z: Pair(y, z),
    ],
    ids=["tuple", "mapping", "dataclass"],
)
def test_all_floating_tensors_of_an_output_count(wrap):
    errors = ModelErrors(Apply(lambda x: wrap(x, 2 * x)), [of(torch.tensor([1.0, 2.0]))])
    assert errors.of(Apply(lambda x: wrap(x + 1, 2 * x - 3))) == (20.0,)


def test_outputs_of_transformers_count():
    from transformers.modeling_outputs import SequenceClassifierOutput

    errors = ModelErrors(Apply(lambda x: SequenceClassifierOutput(logits=x, hidden_states=(x,))), [of(torch.ones(3))])
    assert errors.of(Apply(lambda x: SequenceClassifierOutput(logits=x + 2, hidden_states=(x - 1,)))) == (15.0,)


def test_the_float_model_runs_once():
    runs = []
    errors = ModelErrors(Apply(lambda x: runs.append(0) or x), [of(torch.ones(1)), of(torch.ones(1))])
    errors.of(Calls())
    errors.of(Calls())
    assert len(runs) == 2


def test_a_model_that_returns_one_buffer_again_and_again():
    buffer = torch.zeros(1)
    errors = ModelErrors(Apply(buffer.copy_), [of(torch.tensor([1.0])), of(torch.tensor([2.0]))])
    assert errors.of(Apply(torch.zeros_like)) == (1.0, 4.0)


def test_the_sum_is_taken_in_double_precision():
    values = torch.full((10_000,), 1.0)
    errors = ModelErrors(Calls(), [of(torch.cat([values, torch.tensor([1e4])]))])
    changed = Calls(Apply(lambda x: torch.cat([x[:-1] + 0.5, torch.zeros(1)])))
    assert errors.of(changed) == (10_000 * 0.25 + 1e8,)


def test_equal_infinities_do_not_differ():
    mask = torch.tensor([-math.inf, 1.0, math.inf])
    errors = ModelErrors(Calls(), [of(mask)])
    assert errors.of(Calls(Apply(lambda x: x + 2))) == (4.0,)
    assert errors.of(Calls(Apply(torch.zeros_like))) == (math.inf,)
    assert math.isnan(errors.of(Calls(Apply(lambda x: x * 0)))[0])


def test_outputs_of_other_shapes_are_refused():
    errors = ModelErrors(Calls(), [of(torch.ones(3))])
    with pytest.raises(ModelError, match=r"expected tuple \(float32 \[3\]\), got tuple \(float32 \[2\]\)"):
        errors.of(Calls(Apply(lambda x: x[1:])))
    with pytest.raises(ModelError, match="quantized Calls cannot be compared"):
        errors.of(Calls(Apply(lambda x: (x, x))))


def test_an_output_without_numbers_is_refused():
    with pytest.raises(ModelError, match=r"Apply returned dict \{ids: int64 \[2\]\}: expected a floating tensor"):
        ModelErrors(Apply(lambda x: {"ids": torch.arange(2)}), [of(torch.ones(1))])
