"""A model is trained under autocast, and nothing of it is left anywhere."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inc_torch import MixedPrecisionConfig, QuantizationAwareTrainingConfig, prepare_compression
from inc_torch.callbacks import MixedPrecisionCallbacks
from inc_torch.core.errors import ConfigError, InexactWarning
from tests.loops.driver import ConvNet, distillation, images, mlp, pruning, rows, train


class Watch(nn.Module):
    """Notes what its layer computes in."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.fails = nn.Linear(12, 4), [], False

    def forward(self, x):
        hidden = self.layer(x)
        self.seen.append(hidden.dtype)
        if self.fails:
            message = "the forward fails"
            raise ValueError(message)
        return {"hidden": hidden, "both": (hidden, torch.ones(1, dtype=torch.int64))}


def is_on():
    return torch.is_autocast_enabled("cpu")


def test_forwards_compute_in_bfloat16_from_train_begin_to_train_end():
    model = Watch()
    manager = prepare_compression(model, MixedPrecisionConfig())
    model(torch.ones(1, 12))
    manager.on_train_begin()
    output = model(torch.ones(1, 12))
    manager.on_train_end()
    model(torch.ones(1, 12))
    assert model.seen == [torch.float32, torch.bfloat16, torch.float32]
    assert output["hidden"].dtype is torch.float32
    assert [tensor.dtype for tensor in output["both"]] == [torch.float32, torch.int64]
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert not is_on()


def test_training_equals_a_loop_with_autocast_written_out():
    one, other = mlp(), mlp()
    train(prepare_compression(one, [MixedPrecisionConfig()]), torch.optim.SGD(one.parameters(), 0.1), rows(4))
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    torch.manual_seed(11)
    for inputs, labels in rows(4):
        with torch.autocast("cpu", torch.bfloat16):
            output = other(inputs)
        F.cross_entropy(output.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert mine.dtype is torch.float32
        assert torch.equal(mine, theirs)


def test_a_forward_that_raises_leaves_autocast():
    model = Watch()
    manager = prepare_compression(model, MixedPrecisionConfig())
    manager.on_train_begin()
    model.fails = True
    with pytest.raises(ValueError, match="the forward fails"):
        model(torch.ones(1, 12))
    assert not is_on()
    model.fails = False
    model(torch.ones(1, 12))
    assert model.seen == [torch.bfloat16, torch.bfloat16]
    assert not is_on()


def test_an_interruption_from_the_keyboard_is_left_at_the_end():
    model = nn.Sequential(nn.Linear(12, 4), Interrupting())
    manager = prepare_compression(model, MixedPrecisionConfig())
    manager.on_train_begin()
    with pytest.raises(KeyboardInterrupt):
        model(torch.ones(1, 12))
    manager.on_train_end()
    assert not is_on()


class Interrupting(nn.Module):
    def forward(self, x):
        raise KeyboardInterrupt


def test_nothing_is_done_where_autocast_is_on_already():
    model = Watch()
    manager = prepare_compression(model, MixedPrecisionConfig())
    manager.on_train_begin()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.ones(1, 12))
        assert is_on()
    assert output["hidden"].dtype is torch.bfloat16  # as it would be without us
    assert not is_on()


def test_a_copy_and_a_pickle_compute_in_float():
    model = Watch()
    manager = prepare_compression(model, MixedPrecisionConfig())
    manager.on_train_begin()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.seen.clear()
        other(torch.ones(1, 12))
        assert other.seen == [torch.float32]
    model(torch.ones(1, 12))
    assert model.seen[-1] is torch.bfloat16


def test_a_run_that_is_given_up_leaves_the_model_in_float():
    model = Watch()
    prepare_compression(model, MixedPrecisionConfig()).on_train_begin()
    gc.collect()
    model(torch.ones(1, 12))
    assert model.seen == [torch.float32]


@pytest.mark.parametrize("last", [True, False])
def test_it_goes_with_pruning_distillation_and_quantization(last):
    model = ConvNet()
    others = [pruning(), distillation(ConvNet(1)), QuantizationAwareTrainingConfig()]
    confs = [*others, MixedPrecisionConfig()] if last else [MixedPrecisionConfig(), *others]
    manager = prepare_compression(model, confs)
    train(manager, torch.optim.SGD(model.parameters(), 0.05), images(4))
    report = manager.report()
    assert {row.bits for row in report.modules} == {8}
    assert report.sparsity >= 0.4
    assert not is_on()
    assert model(next(images(1))[0]).dtype is torch.float32


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")  # torch 2.8, of what autocast does
def test_it_goes_through_a_compiled_model():
    model = mlp().eval()
    manager = prepare_compression(model, MixedPrecisionConfig())
    compiled = torch.compile(model, backend="eager")
    manager.on_train_begin()
    inputs, _ = next(rows(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = mlp().eval()(inputs)
    with torch.no_grad():
        assert torch.equal(compiled(inputs), expected.float())
    assert not is_on()


def test_the_plan_has_a_line_for_it():
    manager = prepare_compression(mlp(), MixedPrecisionConfig(precisions=["bf16", "fp16"]))
    assert "autocast to bf16 or fp16" in str(manager.plan())


def test_float16_on_a_cpu_is_said_and_left_out():
    model = Watch()
    manager = prepare_compression(model, MixedPrecisionConfig(precisions="fp16"))
    with pytest.warns(InexactWarning, match="float16 gains nothing on the cpu: the model stays in float32"):
        manager.on_train_begin()
    model(torch.ones(1, 12))
    assert model.seen == [torch.float32]


def test_options_of_a_conversion_have_no_effect_in_a_loop():
    with pytest.warns(
        InexactWarning, match=r"Options of MixedPrecisionConfig without effect here: op_name_dict \(auto"
    ):
        prepare_compression(mlp(), MixedPrecisionConfig(op_name_dict={"0": {"weight": {"dtype": "fp32"}}}))


def test_two_are_refused():
    with pytest.raises(ConfigError, match=r"two mixed precision configs, confs\[0\] and confs\[1\]"):
        prepare_compression(mlp(), [MixedPrecisionConfig(), MixedPrecisionCallbacks(["bf16"])])


def test_a_state_goes_on():
    model = mlp()
    manager = prepare_compression(model, MixedPrecisionConfig())
    manager.on_train_begin()
    state = manager.state_dict()
    other = prepare_compression(mlp(), MixedPrecisionConfig())
    other.load_state_dict(state)
    other.on_train_begin()
    assert other.state_dict().keys() == state.keys()
    seen = []
    handle = other.model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    other.model(torch.ones(1, next(other.model.parameters()).shape[1]))
    handle.remove()
    other.on_train_end()
    assert seen == [torch.bfloat16]
