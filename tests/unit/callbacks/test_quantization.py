"""The callback of quantization-aware training: when it rewrites, rounds, observes and converts."""

from __future__ import annotations

import copy
import io
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from inc_torch import QuantizationAwareTrainingConfig, prepare_compression
from inc_torch.callbacks.quantization import QuantizationAwareTrainingCallbacks
from inc_torch.core.errors import CalibrationError, ConfigError, HookOrderError, InexactWarning, StateError
from inc_torch.core.hooks import Progress, Stage
from inc_torch.core.report import CompressionReport, Finding
from inc_torch.quantizers import FloatType, Int8Linear, QuantRule, QuantSpec
from inc_torch.quantizers._codes import snap, snap_weight
from inc_torch.quantizers._input_range import InputRange

CONFIG = "QuantizationAwareTrainingConfig"
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
    assert callback.state_version == 3
    with pytest.raises(StateError, match=r"does not fit: missing \[\], unexpected \['extra'\]"):
        callback.load_state_dict({**state, "extra": 1})
    callback.on_train_begin()
    train(callback, 1)
    callback.on_train_end()
    with pytest.raises(StateError, match="saved with a model in float, but the model is in int8 now"):
        callback.load_state_dict(state)
    callback.load_state_dict(callback.state_dict())


# ------------------------------------------------------------------------------ freezing


class Normed(nn.Module):
    """A convolution with batch normalization, and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.norm, self.head = nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean(2))


def managed(**options):
    model = Normed()
    return prepare_compression(model, QuantizationAwareTrainingConfig(graph="off", **options)), model


BATCHES = torch.randn(24, 8, 2, 5, generator=torch.Generator().manual_seed(1))


def run(manager, steps, *, accumulate=1, hooks=True, watch=lambda: None):
    """A loop that calls ``model.train()`` in each step; ``watch`` sees every step, after its update."""
    optimizer = torch.optim.SGD(manager.model.parameters(), 0.1)
    batches = iter(BATCHES)
    for _ in range(steps):
        for index in range(accumulate):
            if hooks:
                manager.on_step_begin(index)
            (manager.model.train()(next(batches)).square().mean() / accumulate).backward()
        if hooks:
            manager.on_before_optimizer_step()
        optimizer.step()
        if hooks:
            manager.on_after_optimizer_step()
        watch()
        optimizer.zero_grad()


@pytest.mark.parametrize("hooks", [True, False], ids=["all hooks", "no hooks"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_ranges_stay_after_the_step_that_was_asked_for(accumulate, hooks):
    manager, model = managed(freeze_observers_step=2)
    seen = []
    manager.on_train_begin()
    run(manager, 4, accumulate=accumulate, hooks=hooks, watch=lambda: seen.append(copy.copy(model.head._input_range)))
    assert [found.steps for found in seen] == [1, 2, 2, 2]
    assert (seen[1].low, seen[1].high) == (seen[3].low, seen[3].high)
    model.train()(BATCHES[0] * 100)
    manager.on_train_end()
    assert model.head.input_scale.item() == seen[1].grid.scale


def test_a_frozen_range_still_rounds_and_weights_follow_theirs():
    manager, model = managed(freeze_observers_step=1)
    manager.on_train_begin()
    run(manager, 3)
    manager.on_step_begin(0)
    assert not model.conv._observing
    x = BATCHES[0]
    expected = snap(x, model.conv.grid)
    weight = snap_weight(model.conv.weight, 0)
    assert torch.equal(model.conv(x), torch.conv1d(expected, weight, model.conv.bias))
    assert manager.metrics() == {"fake_quant": 1.0}


@pytest.mark.parametrize("hooks", [True, False], ids=["all hooks", "no hooks"])
@pytest.mark.parametrize(("freeze", "accumulate"), [(0, 1), (2, 1), (2, 3)])
def test_statistics_stay_after_the_step_that_was_asked_for_and_scale_and_shift_learn(freeze, accumulate, hooks):
    manager, model = managed(freeze_batch_norm_step=freeze)
    means, gradients = [model.norm.running_mean.clone()], []

    def watch():
        means.append(model.norm.running_mean.clone())
        gradients.append(model.norm.weight.grad.abs().sum().item())

    manager.on_train_begin()
    run(manager, 4, accumulate=accumulate, hooks=hooks, watch=watch)
    moved = [bool((later != earlier).any()) for earlier, later in pairwise(means)]
    assert moved == [step < freeze for step in range(4)]
    assert int(model.norm.num_batches_tracked) == freeze * accumulate
    assert all(gradient > 0 for gradient in gradients)
    manager.on_train_end()
    assert type(model.norm) is nn.BatchNorm1d
    assert not model.norm.training
    assert torch.equal(model.norm.running_mean, means[-1])


def test_frozen_statistics_are_used_in_training():
    manager, model = managed(freeze_batch_norm_step=0)
    manager.on_train_begin()
    run(manager, 1)
    manager.on_step_begin(0)
    x = BATCHES[0]
    assert torch.equal(model.train()(x), model.eval()(x))


def test_nothing_is_frozen_unless_asked():
    manager, model = managed()
    manager.on_train_begin()
    run(manager, 4)
    assert model.head._input_range.steps == int(model.norm.num_batches_tracked) == 4
    assert type(model.norm) is nn.BatchNorm1d


def test_a_step_that_the_scaler_skips_does_not_bring_the_freezing_nearer():
    manager, model = managed(freeze_observers_step=1, freeze_batch_norm_step=1)
    manager.on_train_begin()
    manager.on_step_begin(0)
    model.train()(BATCHES[0]).square().mean().backward()
    manager.on_before_optimizer_step()  # and the optimizer does not step
    manager.on_after_optimizer_step()
    before = model.norm.running_mean.clone()
    manager.on_step_begin(1)
    model.train()(BATCHES[1])
    assert not torch.equal(model.norm.running_mean, before)
    manager.on_before_optimizer_step()
    assert model.head._input_range.steps == 2


def test_an_older_state_thaws_what_was_frozen():
    manager, model = managed(freeze_observers_step=2, freeze_batch_norm_step=2)
    manager.on_train_begin()
    run(manager, 1)
    older = manager.state_dict()
    run(manager, 2)
    manager.on_step_begin(0)
    assert not model.head._observing
    manager.load_state_dict(older)
    before = model.norm.running_mean.clone()
    run(manager, 1)
    assert not torch.equal(model.norm.running_mean, before)
    assert model.head._input_range.steps == 2


def test_freezing_what_is_not_there_is_warned_about():
    conf = QuantizationAwareTrainingConfig(freeze_batch_norm_step=1)
    with pytest.warns(InexactWarning, match="has no effect: the model has no batch normalization"):
        prepare_compression(nn.Linear(2, 2), conf)

    class Own(nn.BatchNorm1d):
        pass

    with pytest.warns(InexactWarning, match="leaves '1' as it is: only modules of exactly a class of torch.nn"):
        prepare_compression(nn.Sequential(nn.Linear(2, 2), Own(2), nn.BatchNorm1d(2)), conf)


def test_bfloat16_autocast_trains_with_everything_frozen():
    manager, model = managed(freeze_observers_step=1, freeze_batch_norm_step=1)
    manager.on_train_begin()
    with torch.autocast("cpu", torch.bfloat16):
        run(manager, 3)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model.head._input_range.steps == int(model.norm.num_batches_tracked) == 1
    manager.on_train_end()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(BATCHES[0]).dtype == torch.bfloat16


# ------------------------------------------------------------------------------ options


IDLE = {
    "device": ({"device": "gpu"}, r"device \(the model does not lie there; use model.to\('cuda'\)\)\."),
    "inputs": ({"inputs": "x"}, r"inputs \(modules of PyTorch have no such names\)\."),
    "outputs": ({"outputs": ["y"]}, r"outputs \(modules of PyTorch have no such names\)\."),
    "model_name": ({"model_name": "bert"}, r"model_name \(nothing asks for the label\)\."),
    "quant_format": ({"quant_format": "QDQ"}, r"quant_format \(it is of an ONNX export\)\."),
    "default rule": (
        {"op_name_dict": {"default_qconfig": {"weight": {"dtype": "int8"}}}},
        r"op_name_dict\['default_qconfig'\] \(operations that are no modules stay in float\)\.",
    ),
    "several": ({"inputs": "x", "model_name": "bert"}, r"inputs \(.*\); model_name \(.*\)\."),
}


@pytest.mark.parametrize(("options", "message"), IDLE.values(), ids=IDLE)
def test_an_option_that_can_have_no_effect_is_warned_about_once(options, message):
    with pytest.warns(InexactWarning, match=f"^Options of {CONFIG} without effect here: {message}") as caught:
        managed(**options)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"quant_level": 1}, "quant_level"),
        ({"relative": 0.05}, "accuracy_criterion"),
        ({"max_trials": 5, "quant_level": 0}, "quant_level, tuning_criterion"),
    ],
)
def test_options_of_a_search_are_warned_about_when_a_loop_begins(options, names):
    manager, _ = managed(**options)
    with pytest.warns(InexactWarning, match=f"^{names} of {CONFIG} guide a search, and a training loop") as caught:
        manager.on_train_begin()
    assert len(caught) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "default"},
        {"excluded_precisions": ["bf16", "fp16"]},
        {"reduce_range": True},
        {"reduce_range": False},
        {"op_type_dict": {"Linear": {"weight": {"dtype": "fp32"}}}},
        {"op_name_dict": {"default_qconfig": {"weight": {"dtype": "fp32"}}}},
    ],
    ids=str,
)
def test_options_that_have_their_effect_are_not(options):
    assert QuantizationAwareTrainingConfig(**options).options_without_effect({"cpu"}) == {}
    managed(**options)  # a warning would be an error


def test_options_reach_the_modules():
    fp32 = {"weight": {"dtype": "fp32"}, "activation": {"dtype": "fp32"}}
    manager, _ = managed(reduce_range=True, op_name_dict={"head": fp32})
    (callback,) = manager.callbacks.callbacks_list
    assert list(callback.findings()) == [
        Finding("conv", scheme="w8a7-static"),
        Finding("head", note="left in float by the configuration"),
    ]


def test_a_rule_of_a_config_that_names_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"'haed' of op_name_dict matches no module.* Did you mean 'head'\?"):
        managed(op_name_dict={"haed": {"weight": {"dtype": "fp32"}}})


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_what_a_rule_leaves_to_bfloat16_computes_in_it_after_training(has_bfloat16, monkeypatch):
    monkeypatch.setattr("inc_torch.precision.has_bfloat16", lambda _: has_bfloat16)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2))
    callback = QuantizationAwareTrainingCallbacks(QuantSpec(rules=(QuantRule("name", "2", FloatType.BFLOAT16),)))
    callback.prepare(model, Progress())
    callback.on_train_begin()
    train(callback, 2)
    assert model[2].weight.dtype == torch.float32
    if has_bfloat16:
        callback.on_train_end()
        assert model[2].weight.dtype == torch.bfloat16
        assert list(callback.findings())[1] == Finding("2", scheme="bfloat16", note="as the configuration asks")
        assert model(torch.randn(3, 4)).dtype == torch.float32
    else:
        with pytest.warns(InexactWarning, match="'2' was to compute in bfloat16, which this processor lacks"):
            callback.on_train_end()
        assert model[2].weight.dtype == torch.float32


def test_a_loop_that_leaves_the_model_in_evaluation_mode_is_put_right():
    """As INC's on_train_begin does; else no range would be observed, which only the end of the training would show."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)).eval()
    manager = prepare_compression(model, QuantizationAwareTrainingConfig())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.on_train_begin()
    told = []
    for index in range(3):
        manager.on_step_begin(index)
        model(torch.randn(4, 4)).square().mean().backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            manager.on_before_optimizer_step()
        told += [str(warning.message) for warning in caught]
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
    manager.on_train_end()
    assert told == [
        "Sequential was in evaluation mode while it was trained, where no range of an input is observed; it is in "
        "training mode now. Call model.train() before the loop."
    ]
    assert isinstance(model[0], Int8Linear)
