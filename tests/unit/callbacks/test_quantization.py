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
from inc_torch.quantizers import Int8Linear, QATSpec, QuantRule

SPEC = QATSpec(rules=(QuantRule("name", "2", None),))


def bound():
    """A callback bound to a small model, of which layer 2 stays in float."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2))
    callback = QuantizationAwareTrainingCallbacks(SPEC)
    callback.prepare(model, Progress())
    return callback, model


def train(model, steps, optimizer=None):
    """Take a few steps on data that depends on nothing but their number."""
    generator = torch.Generator().manual_seed(steps)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 4, generator=generator)).square().mean().backward()
        optimizer.step()


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
    train(model, 3)
    fake = model.eval()(x)
    callback.on_train_end()
    assert [type(module).__name__ for module in model] == ["Int8Linear", "Tanh", "Linear", "Int8Linear"]
    assert (model(x) - fake).abs().max() < 1e-6 * fake.abs().max()


def test_findings_name_scheme_or_reason_and_fit_the_report():
    callback, model = bound()
    expected = [
        Finding("0", scheme="w8a8-static"),
        Finding("2", note="left in float by the configuration"),
        Finding("3", scheme="w8a8-static"),
    ]
    assert list(callback.findings()) == expected
    callback.on_train_begin()
    train(model, 1)
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
    train(model, 1)
    callback.on_train_end()
    callback.on_train_end()
    assert isinstance(model[0], Int8Linear)


def test_training_cannot_begin_again_after_conversion():
    callback, model = bound()
    callback.on_train_begin()
    train(model, 1)
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


@pytest.mark.parametrize("cut", [0, 1, 4])
def test_a_run_cut_and_resumed_equals_the_uncut_run(cut):
    torch.manual_seed(5)
    callback, model = bound()
    torch.manual_seed(5)
    other_callback, other = bound()
    for each in (callback, other_callback):
        each.on_train_begin()
    for part in (model, other):
        train(part, cut)
    weights, state = through_a_file(other.state_dict()), through_a_file(other_callback.state_dict())
    resumed_callback, resumed = bound()
    resumed.load_state_dict(weights)
    resumed_callback.load_state_dict(state)
    resumed_callback.on_train_begin()
    for part, owner in ((model, callback), (resumed, resumed_callback)):
        train(part, 6)
        owner.on_train_end()
    assert model.state_dict().keys() == resumed.state_dict().keys()
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_wrong_states_are_refused():
    callback, model = bound()
    state = callback.state_dict()
    with pytest.raises(StateError, match=r"does not fit: missing \[\], unexpected \['extra'\]"):
        callback.load_state_dict({**state, "extra": 1})
    callback.on_train_begin()
    train(model, 1)
    callback.on_train_end()
    with pytest.raises(StateError, match="saved with a model in float, but the model is in int8 now"):
        callback.load_state_dict(state)
    callback.load_state_dict(callback.state_dict())
