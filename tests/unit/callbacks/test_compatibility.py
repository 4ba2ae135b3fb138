"""What goes together, in any order, and what is refused before the model is touched."""

from __future__ import annotations

import itertools
import re

import pytest
from torch import nn

from inc_torch import (
    Callback,
    DistillationConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
    prepare_compression,
    quantization,
)
from inc_torch.callbacks._compatibility import COMBINATIONS
from inc_torch.core.errors import ConfigError, InexactWarning, ModelError
from tests.loops.driver import ConvNet, distillation, pruning

LOCK = WeightPruningConfig(pruning_type="pattern_lock")


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def refused(model: nn.Module, confs: list[object], kind: type[Exception]) -> str:
    """The message, after every order of the configs was refused with the model as it was."""
    before = classes(model)
    messages = set()
    for order in itertools.permutations(confs):
        with pytest.raises(kind) as caught:
            prepare_compression(model, list(order))
        messages.add(str(caught.value))
        assert classes(model) == before
    return messages.pop()


def row(words: str) -> str:
    """What the table says of it."""
    (found,) = [entry.meaning for entry in COMBINATIONS if entry.what == words]
    return found


def test_two_quantizers():
    message = refused(ConvNet(), [QuantizationAwareTrainingConfig(), QuantizationAwareTrainingConfig()], ConfigError)
    assert message == (
        "prepare_compression got two quantization configs, confs[0] and confs[1]. " + row("two quantization configs")
    )
    three = [QuantizationAwareTrainingConfig(), pruning(), QuantizationAwareTrainingConfig()]
    assert "two quantization configs" in refused(ConvNet(), three, ConfigError)


def int8(model: nn.Module) -> nn.Module:
    return quantization.fit(model, PostTrainingQuantConfig(approach="post_training_dynamic_quant"))


@pytest.mark.parametrize("conf", [QuantizationAwareTrainingConfig(), pruning(), LOCK])
def test_a_model_that_is_int8_in_part(conf):
    model = nn.Sequential(int8(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))), nn.Linear(4, 4), nn.Linear(4, 2))
    message = refused(model, [conf], ModelError)
    assert message.startswith(
        f"Module '0.0' is already converted to int8, and so are 1 more of Sequential: {type(conf).__name__} expected a "
        "float model. Codes cannot be trained."
    )


def test_a_model_of_four_bits():
    model = quantization.fit(nn.Sequential(nn.Linear(32, 4)), PostTrainingQuantConfig(approach="weight_only"))
    assert "Module '0' is already converted to int4: WeightPruningConfig" in refused(model, [pruning()], ModelError)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("conf", [QuantizationAwareTrainingConfig(), pruning()])
def test_a_model_that_another_manager_prepared(conf, begun):
    model = ConvNet()
    other = prepare_compression(model, QuantizationAwareTrainingConfig())
    if begun:
        other.on_train_begin()
    message = refused(model, [conf, distillation(ConvNet(1))], ModelError)
    assert message.startswith(
        f"Module 'conv' is already prepared for quantization, and so are 2 more of ConvNet: {type(conf).__name__} "
        "expected a float model. Give all configs to one prepare_compression"
    )
    assert other.callbacks.is_training == begun  # a refusal ends no other run


def test_a_lock_that_begins_while_masks_change():
    late = WeightPruningConfig(pruning_type="pattern_lock", start_step=1, end_step=1)
    message = refused(ConvNet(), [late, pruning()], ConfigError)
    assert message.startswith(
        "prepare_compression got a pattern_lock with start_step=1 and a pruner of 'conv' whose masks change from step "
        "0 to 2. What the pruner takes back, the lock would hold."
    )
    apart = WeightPruningConfig(pruning_type="pattern_lock", start_step=1, end_step=1, op_names=["hidden"])
    prepare_compression(ConvNet(), [apart, pruning(op_names=["conv"])])
    after = WeightPruningConfig(pruning_type="pattern_lock", start_step=3, end_step=3)
    with pytest.warns(InexactWarning, match="taken by several pruning configs"):
        prepare_compression(ConvNet(), [after, pruning()])


@pytest.mark.parametrize("second", [LOCK, pruning(pattern="1x1")])
def test_two_pruners_of_one_layer(second):
    with pytest.warns(InexactWarning) as caught:
        prepare_compression(ConvNet(), [pruning(), second])
    (warning,) = caught
    assert str(warning.message) == (
        "2 layer(s) are taken by several pruning configs: 'conv', 'hidden'. All of their masks apply, so more may be "
        "pruned than any one asks. Keep them apart with op_names or excluded_op_names."
    )


def test_distillation_alone_asks_nothing_of_the_model():
    model = nn.Sequential(int8(nn.Sequential(nn.Linear(4, 4))), nn.Linear(4, 2))
    manager = prepare_compression(model, DistillationConfig(nn.Linear(4, 2)))
    assert [repr(callback) for callback in manager.callbacks.callbacks_list] == ["Distillation Callbacks"]


def test_the_rest_works_in_any_order():
    teacher = ConvNet(1)
    parts = {
        "pruning": pruning,
        "pattern lock": lambda: LOCK,
        "quantization": QuantizationAwareTrainingConfig,
        "distillation": lambda: distillation(teacher),
        "several distillation configs": lambda: distillation(teacher),
        "mixed precision": MixedPrecisionConfig,
        "callbacks of your own": Callback,
    }
    for entry in COMBINATIONS:
        if entry.outcome == "works":
            names = [name for name in entry.what.split(", ") if name in parts]
            assert names, entry
            for order in itertools.permutations(names):
                prepare_compression(ConvNet(), [parts[name]() for name in order] + [distillation(teacher)])


def test_it_is_said_before_a_teacher_is_copied_or_an_earlier_run_hears_of_it():
    model = ConvNet()
    confs = [DistillationConfig(model), QuantizationAwareTrainingConfig(), QuantizationAwareTrainingConfig()]
    with pytest.raises(ConfigError, match=re.escape("confs[1] and confs[2]")):
        prepare_compression(model, confs)  # no warning of the copy
