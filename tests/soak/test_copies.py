"""Copies and pickles: of configurations, of models in training and after it; of a manager none are made."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from torch import nn

import inc_torch
from inc_torch import config as configs
from inc_torch import optimize_for_inference, prepare_compression
from tests.loops.driver import ConvNet, assert_equal_states, images, train
from tests.soak.cycles import STEPS, begun, confs, hooks_on, int8, step

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
LETTERS = ["p", "q", "d", "l", "h", "pqdlh"]


def example(kind: type[configs.Config]) -> configs.Config:
    """One whose options are not all the default ones, where there is a choice."""
    special = {
        "AccuracyCriterion": lambda: configs.AccuracyCriterion(tolerable_loss=0.03),
        "BenchmarkConfig": lambda: configs.BenchmarkConfig(warmup=3, iteration=7),
        "DistillationConfig": lambda: configs.DistillationConfig(
            criterion=configs.KnowledgeDistillationLossConfig(3.0, ["CE", "KL"], [0.25, 0.75])
        ),
        "IntermediateLayersKnowledgeDistillationLossConfig": lambda: (
            configs.IntermediateLayersKnowledgeDistillationLossConfig([["a", "b"]], loss_types=["MSE"])
        ),
        "KnowledgeDistillationLossConfig": lambda: configs.KnowledgeDistillationLossConfig(
            3.0, ["CE", "MSE"], [0.75, 0.25]
        ),
        "MixedPrecisionConfig": lambda: configs.MixedPrecisionConfig(excluded_precisions=["fp16"]),
        "PostTrainingQuantConfig": lambda: configs.PostTrainingQuantConfig(
            op_name_dict={"head": {"weight": {"dtype": "fp32"}}},
            tuning_criterion=configs.TuningCriterion(max_trials=3),
        ),
        "QuantizationAwareTrainingConfig": lambda: configs.QuantizationAwareTrainingConfig(start_step=7),
        "SelfKnowledgeDistillationLossConfig": lambda: configs.SelfKnowledgeDistillationLossConfig([[["a", "b"]]]),
        "Torch2ONNXConfig": lambda: configs.Torch2ONNXConfig(example_inputs=(1, 2)),
        "TuningCriterion": lambda: configs.TuningCriterion(max_trials=4),
        "WeightPruningConfig": lambda: configs.WeightPruningConfig(
            [{"op_names": ["head"], "target_sparsity": 0.25}], pattern="2:4", end_step=9
        ),
    }
    return special[kind.__name__]()


KINDS = sorted(
    {
        value
        for name in configs.__all__
        if isinstance(value := getattr(configs, name), type)
        and issubclass(value, configs.Config)
        and value is not configs.Config
    },
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_configurations_are_equal_after_a_round_trip(kind):
    made = example(kind)
    assert any(getattr(made, field.name) != field.default for field in dataclasses.fields(made))
    twins = [copy.copy(made), copy.deepcopy(made), *(pickle.loads(pickle.dumps(made, each)) for each in PROTOCOLS)]
    for twin in twins:
        assert type(twin) is kind
        assert twin == made
        assert repr(twin) == repr(made)
        with pytest.raises(configs.FrozenConfigError):
            setattr(twin, dataclasses.fields(made)[0].name, None)


def midway(letters: str):
    """A manager in the midst of its training, with the optimizer."""
    model = ConvNet()
    manager = prepare_compression(model, confs(letters, ConvNet(1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    begun(manager, optimizer)
    return manager, optimizer


def finished(letters: str) -> dict[str, torch.Tensor]:
    manager, optimizer = midway(letters)
    step(manager, optimizer, STEPS, *next(images(1)))
    manager.on_train_end()
    return manager.model.state_dict()


@pytest.mark.parametrize("letters", LETTERS)
def test_a_copy_in_training_computes_the_same_and_takes_no_part(letters):
    """However the copy is used and trained, the training of the original goes on as if there was none."""
    expected = finished(letters)
    manager, optimizer = midway(letters)
    model, (inputs, labels) = manager.model, next(images(1))
    state = torch.get_rng_state()
    twin = copy.deepcopy(model)
    assert_equal_states(twin.state_dict(), model.state_dict())
    same = model
    if letters == "h":  # half precision is of the training, not of the model
        same = ConvNet()
        same.load_state_dict(model.state_dict())
    if "h" not in letters or same is not model:
        assert torch.equal(evaluated(twin, inputs), evaluated(same, inputs))
    torch.set_rng_state(state)
    manager.on_step_begin(STEPS)
    output = model(inputs)
    other = torch.optim.SGD(twin.parameters(), lr=1.0)
    for _ in range(2):  # between the original's forward and its loss
        nn.functional.cross_entropy(twin(100 * inputs), labels).backward()
        other.step()
    assert manager.callbacks.progress.step == STEPS
    manager.on_after_compute_loss(inputs, output, nn.functional.cross_entropy(output, labels)).backward()
    manager.on_before_optimizer_step()
    optimizer.step()
    manager.on_after_optimizer_step()
    manager.on_step_end()
    manager.on_train_end()
    assert_equal_states(model.state_dict(), expected)


def evaluated(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model.eval()(inputs)
    model.train()
    return output


@pytest.mark.parametrize("letters", ["p", "q", "pqdlh"])
def test_a_copy_lives_longer_than_the_original(letters):
    manager, _ = midway(letters)
    twin = copy.deepcopy(manager.model).eval()
    inputs, _ = next(images(1))
    with torch.no_grad():
        before = twin(inputs)
        manager.on_train_end()
        del manager
        assert torch.equal(twin(inputs), before)


@pytest.mark.parametrize("letters", LETTERS)
def test_a_model_after_its_training_is_copied_and_pickled(letters):
    model = ConvNet()
    manager = prepare_compression(model, confs(letters, ConvNet(1)))
    train(manager, torch.optim.AdamW(model.parameters(), lr=0.01), images(STEPS))
    assert hooks_on(model) == 0
    same(model.eval(), next(images(1))[0])


@pytest.mark.parametrize("approach", ["static", "dynamic"])
@pytest.mark.parametrize("is_fast", [False, True], ids=["plain", "fast"])
def test_an_int8_model_is_copied_and_pickled(approach, is_fast):
    inputs, model = next(images(1))[0], int8(approach)
    with torch.no_grad():
        model(inputs)  # weights are packed now
    same(model, inputs)
    if is_fast:
        optimize_for_inference(model, inputs)
        for twin in twins_of(model):
            with torch.no_grad():
                torch.testing.assert_close(twin(inputs), model(inputs), rtol=0.05, atol=0.05)


def same(model: nn.Module, inputs: torch.Tensor) -> None:
    for twin in twins_of(model):
        assert twin is not model
        assert type(twin) is type(model)
        assert_equal_states(twin.state_dict(), model.state_dict())
        with torch.no_grad():
            assert torch.equal(twin(inputs), model(inputs))
        assert twin.report() == model.report()


def twins_of(model: nn.Module) -> list[nn.Module]:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return [copy.deepcopy(model), torch.load(file, weights_only=False), pickle.loads(pickle.dumps(model))]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_manager_is_not_copied(clone, is_begun):
    """Two managers of one run would both change the model; the state goes on by state_dict."""
    manager, optimizer = managed_here()
    if is_begun:
        begun(manager, optimizer)
    with pytest.raises(TypeError, match=r"CompressionManager .*state_dict"):
        clone(manager)
    assert inc_torch.CompressionManager is type(manager)


def managed_here():
    model = ConvNet()
    return prepare_compression(model, confs("pq", model)), torch.optim.SGD(model.parameters(), lr=0.01)
