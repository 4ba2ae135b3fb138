"""The callback of quantization-aware training: when it rewrites, rounds, observes and converts."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from inc_torch.callbacks.quantization import QuantizationAwareTrainingCallbacks
from inc_torch.core.errors import CalibrationError, HookOrderError, StateError
from inc_torch.core.hooks import Progress, Stage
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.quantizers import FloatType, Int8Linear, QuantRule, QuantSpec
from inc_torch.quantizers._input_range import InputRange

SPEC = QuantSpec(rules=(QuantRule("name", "2", FloatType.FLOAT32),))


def bound():
    """A callback bound to a small model, of which layer 2 stays in float."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2))
    callback = QuantizationAwareTrainingCallbacks(SPEC)
    callback.prepare(model, Progress())
    return callback, model


def train(callback, steps, extra_batches=0):
    """Take a few steps of two micro-batches on data that depends on nothing but their number, and begin another."""
    model = callback.model.train()
    generator = torch.Generator().manual_seed(steps)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for number in range(1, 2 * steps + extra_batches + 1):
        model(torch.randn(4, 4, generator=generator)).square().mean().backward()
        if number % 2 == 0:
            callback.on_before_optimizer_step()
            optimizer.step()
            optimizer.zero_grad()


def test_name_and_stage():
    assert repr(QuantizationAwareTrainingCallbacks(SPEC)) == "Quantization Aware Training Callbacks"
    assert QuantizationAwareTrainingCallbacks.stage is Stage.REWRITE


def test_float_before_training_rounded_in_it_int8_after():
    callback, model = bound()
    x = torch.randn(16, 4)
    plain = copy.deepcopy(model)
    float_output = model(x)
    assert torch.equal(plain(x), float_output)
    callback.on_train_begin()
    train(callback, 3)
    fake = model.eval()(x)
    callback.on_train_end()
    assert [type(module).__name__ for module in model] == ["Int8Linear", "Tanh", "Linear", "Int8Linear"]
    assert (model(x) - fake).abs().max() < 1e-6 * fake.abs().max()


def test_ranges_change_before_the_optimizer_steps_and_hold_all_micro_batches():
    callback, model = bound()
    callback.on_train_begin()
    small, great = torch.full((2, 4), -1.0), torch.full((2, 4), 3.0)
    for batch in (small, great):
        model(batch)
    assert model[0].grid is None
    callback.on_before_optimizer_step()
    assert model[0]._input_range == InputRange(-1.0, 3.0, 1)
    callback.on_before_optimizer_step()
    assert model[0]._input_range == InputRange(-1.0, 3.0, 1)
    model(great * 3)
    callback.on_train_end()
    assert model[0].input_scale.item() == pytest.approx((0.5 + 6.0) / 255)


def test_metrics_tell_how_much_is_rounded():
    callback = QuantizationAwareTrainingCallbacks(QuantSpec())
    model = nn.ModuleList([nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
    callback.prepare(model, Progress())
    assert callback.metrics() == {"fake_quant": 0.0}
    callback.on_train_begin()
    assert callback.metrics() == {"fake_quant": 0.25}
    model[2](model[1](model[0](torch.arange(4))))
    assert callback.metrics() == {"fake_quant": 0.25}
    callback.on_before_optimizer_step()
    assert callback.metrics() == {"fake_quant": 0.75}
    model[3](torch.ones(4))
    callback.on_train_end()
    assert callback.metrics() == {}


def test_findings_name_scheme_or_reason_and_fit_the_report():
    callback, model = bound()
    expected = [
        Finding("0", scheme="w8a8-static"),
        Finding("2", note="left in float by the configuration"),
        Finding("3", scheme="w8a8-static"),
    ]
    assert list(callback.findings()) == expected
    callback.on_train_begin()
    train(callback, 1)
    callback.on_train_end()
    report = CompressionReport.measure(model, callback.findings())
    assert [(row.name, row.bits, row.scheme) for row in report.modules] == [
        ("0", 8, "w8a8-static"),
        ("2", 32, None),
        ("3", 8, "w8a8-static"),
    ]


def test_hooks_may_come_twice():
    callback, model = bound()
    callback.on_train_begin()
    callback.on_train_begin()
    train(callback, 1)
    callback.on_train_end()
    callback.on_train_end()
    assert isinstance(model[0], Int8Linear)


def test_training_cannot_begin_again_after_conversion():
    callback, _ = bound()
    callback.on_train_begin()
    train(callback, 1)
    callback.on_train_end()
    with pytest.raises(HookOrderError, match="on_train_begin was called after on_train_end: the model is int8"):
        callback.on_train_begin()


def test_ending_without_a_batch_is_an_error():
    callback, _ = bound()
    callback.on_train_begin()
    with pytest.raises(CalibrationError, match="no input of '0', '3' was observed"):
        callback.on_train_end()


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(("cut", "extra_batches"), [(0, 0), (1, 0), (4, 0), (0, 1), (3, 1)])
def test_a_run_cut_and_resumed_equals_the_uncut_run(cut, extra_batches):
    torch.manual_seed(5)
    callback, model = bound()
    torch.manual_seed(5)
    other_callback, other = bound()
    for each in (callback, other_callback):
        each.on_train_begin()
    for part in (callback, other_callback):
        train(part, cut, extra_batches)
    model.zero_grad()
    weights, state = through_a_file(other.state_dict()), through_a_file(other_callback.state_dict())
    resumed_callback, resumed = bound()
    resumed.load_state_dict(weights)
    resumed_callback.load_state_dict(state)
    resumed_callback.on_train_begin()
    for part in (callback, resumed_callback):
        train(part, 6)
        part.on_train_end()
    assert model.state_dict().keys() == resumed.state_dict().keys()
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_wrong_states_are_refused():
    callback, _ = bound()
    state = callback.state_dict()
    assert callback.state_version == 2
    with pytest.raises(StateError, match=r"does not fit: missing \[\], unexpected \['extra'\]"):
        callback.load_state_dict({**state, "extra": 1})
    callback.on_train_begin()
    train(callback, 1)
    callback.on_train_end()
    with pytest.raises(StateError, match="saved with a model in float, but the model is in int8 now"):
        callback.load_state_dict(state)
    callback.load_state_dict(callback.state_dict())
