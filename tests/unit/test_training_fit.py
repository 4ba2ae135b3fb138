"""`training.fit`: a search in which every trial trains the model from its float weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from inc_torch import (
    DistillationConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    WeightPruningConfig,
    prepare_compression,
    training,
)
from inc_torch.core.callback import Callback
from inc_torch.core.errors import ConfigError, GoalMissedError, GoalMissedWarning, HookOrderError, ModelError
from inc_torch.quantizers import Int8Linear


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(4 * 16, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, images):
        return self.fc2(self.fc1(self.norm(self.conv(images)).relu().flatten(1)).relu())


DATA = torch.randn(4, 8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
CONFIG = {"excluded_precisions": ["bf16"], "graph": "off"}


def made(*others, **options):
    torch.manual_seed(0)
    model = Net()
    return model, prepare_compression(model, [QuantizationAwareTrainingConfig(**CONFIG, **options), *others])


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in DATA:
        noise = torch.randn_like(batch)
        optimizer.zero_grad()
        model(batch + 0.1 * noise).square().mean().backward()
        optimizer.step()
    return model


def scripted(*scores):
    """Scores one after the other; what it has seen of the models, and their outputs."""
    left, seen = iter(scores), []

    def score(model):
        kinds = tuple(isinstance(getattr(model, name), Int8Linear) for name in ("fc1", "fc2"))
        seen.append((kinds, model(DATA[0]).detach().clone()))
        return next(left)

    return score, seen


def test_the_users_own_object_is_returned_in_int8():
    model, manager = made()
    score, seen = scripted(1.0, 0.995)
    fitted = training.fit(manager, train, eval_func=score)
    assert fitted is model is manager.model
    assert fitted.tuning.reason == "trial 1 meets the goal"
    assert [kinds for kinds, _ in seen] == [(False, False), (True, True)]
    assert torch.equal(fitted(DATA[0]), seen[1][1])
    assert {row.name: row.bits for row in fitted.report().modules} == {"conv": 8, "fc1": 8, "fc2": 8}


def test_every_trial_begins_with_equal_weights_and_random_numbers():
    _, manager = made(max_trials=3)
    begun = []

    def watched(model):
        begun.append((copy.deepcopy(model.state_dict()), torch.rand(1)))
        return train(model)

    score, _ = scripted(1.0, 0.5, 0.5, 0.5)
    with pytest.warns(GoalMissedWarning):
        training.fit(manager, watched, eval_func=score)
    assert len(begun) == 3
    for weights, drawn in begun[1:]:
        assert torch.equal(drawn, begun[0][1])
        assert all(torch.equal(tensor, begun[0][0][name]) for name, tensor in weights.items())


def test_trials_come_in_the_order_of_inc():
    _, manager = made(max_trials=6)
    score, _ = scripted(1.0, *[0.5] * 6)
    with pytest.warns(GoalMissedWarning):
        fitted = training.fit(manager, train, eval_func=score)
    sym = "int8 sym/minmax"
    assert [trial["changes"] for trial in fitted.tuning.history] == [
        {},
        {"fc1": "fp32", "fc2": "fp32"},
        {"conv": "fp32"},
        {"fc1": sym, "fc2": sym},
        {"conv": sym},
        {"conv": sym, "fc1": sym, "fc2": sym},
    ]


def test_later_trials_leave_the_best_model_as_it_was():
    _, manager = made(max_trials=4)
    score, seen = scripted(1.0, 0.5, 0.7, 0.6, 0.5)
    with pytest.warns(GoalMissedWarning, match=r"scores 0\.7000"):
        fitted = training.fit(manager, train, eval_func=score)
    assert fitted.tuning.best.number == 2
    assert torch.equal(fitted(DATA[0]), seen[2][1])
    assert [isinstance(fitted.get_submodule(name), Int8Linear) for name in ("fc1", "fc2")] == [False, False]


@pytest.mark.parametrize("on_miss", ["none", "raise"])
def test_without_a_result_the_float_model_is_as_it_was(on_miss):
    model, manager = made(tuning_criterion=TuningCriterion(max_trials=2, on_miss=on_miss))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score, _ = scripted(1.0, 0.5, 0.5)
    if on_miss == "raise":
        with pytest.raises(GoalMissedError) as caught:
            training.fit(manager, train, eval_func=score)
        assert len(caught.value.result.trials) == 2
    else:
        with pytest.warns(GoalMissedWarning):
            assert training.fit(manager, train, eval_func=score) is None
    assert type(model.fc1) is nn.Linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_error_in_train_func_rises_and_leaves_the_float_model():
    model, manager = made()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def broken(model):
        train(model)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        training.fit(manager, broken, eval_func=lambda _: 1.0)
    assert "In trial 1 of the tuning search" in caught.value.__notes__[0]
    assert type(model.fc1) is nn.Linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_pruning_and_distillation_take_part_in_every_trial():
    pruning = WeightPruningConfig(
        target_sparsity=0.5, pattern="1x1", pruning_type="magnitude", start_step=1, end_step=2, op_names=["fc1"]
    )
    torch.manual_seed(1)
    _, manager = made(pruning, DistillationConfig(Net()), max_trials=2)
    score, _ = scripted(1.0, 0.6, 0.5)
    with pytest.warns(GoalMissedWarning):
        fitted = training.fit(manager, lambda model: hooked(model, manager), eval_func=score)
    assert fitted.tuning.best.number == 1
    assert 0.5 <= (fitted.fc1.qweight == 0).float().mean() < 0.6


def hooked(model, manager):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    manager.on_train_begin()
    for index, batch in enumerate(DATA):
        manager.on_step_begin(index)
        output = model(batch)
        manager.on_after_compute_loss(batch, output, output.square().mean()).backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()


def test_hooks_may_be_called_in_train_func():
    _, manager = made()
    fitted = training.fit(manager, lambda model: hooked(model, manager), eval_func=lambda _: 1.0)
    assert isinstance(fitted.fc1, Int8Linear)


def test_without_an_evaluation_there_is_one_training():
    model, manager = made()
    calls = []
    fitted = training.fit(manager, lambda given: calls.append(train(given)))
    assert fitted is model
    assert len(calls) == 1
    assert isinstance(fitted.fc1, Int8Linear)
    assert fitted.tuning is None


def test_another_model_in_return_is_refused():
    _, manager = made()
    with pytest.raises(ModelError, match="train_func returned another Net than it was given"):
        training.fit(manager, lambda model: copy.deepcopy(train(model)), eval_func=lambda _: 1.0)


def test_what_cannot_be_searched_is_refused():
    manager = prepare_compression(Net(), WeightPruningConfig(start_step=1, end_step=2))
    with pytest.raises(ConfigError, match="expected a QuantizationAwareTrainingConfig"):
        training.fit(manager, train)
    _, manager = made(Callback())
    with pytest.raises(ConfigError, match="cannot begin again"):
        training.fit(manager, train)
    _, manager = made()
    manager.on_train_begin()
    with pytest.raises(HookOrderError, match="expected a new manager"):
        training.fit(manager, train)
    _, manager = made(strategy="mse_v2", max_trials=4)
    with pytest.raises(ConfigError, match="each model would have to be trained"):
        training.fit(manager, train, eval_func=scripted(1.0, *[0.5] * 4)[0])
