"""Channels pruned by the gradient of the loss, without training."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression, prepare_pruning
from inc_torch.core.errors import CalibrationError, ConfigError, InexactWarning, ModelError
from inc_torch.pruners.calibrated.retrain_free import least_missed
from tests.unit.pruners.vectors import VECTORS, Vector


class Perceptron(nn.Module):
    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        first, second = torch.tensor(inputs["fc1"]), torch.tensor(inputs["fc2"])
        self.fc1 = nn.Linear(first.shape[1], first.shape[0], bias=False)
        self.fc2 = nn.Linear(second.shape[1], second.shape[0], bias=False)
        self.fc1.weight.data.copy_(first)
        self.fc2.weight.data.copy_(second)
        self.act = nn.ReLU()  # last, so that fc2 is not taken for a classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


def batches_of(vector: Vector) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows, labels = torch.tensor(vector["inputs"]["x"]), torch.tensor(vector["inputs"]["y"])
    return list(zip(rows.split(1), labels.split(1), strict=True))


def pruned(vector: Vector, **changed: Any) -> Perceptron:
    model = Perceptron(vector["inputs"])
    config = WeightPruningConfig(**(vector["config"] | changed))
    prepare_pruning(model, config, dataloader=batches_of(vector), loss_func=nn.CrossEntropyLoss())
    return model


def test_p08_channels_go_as_by_inc():
    vector = VECTORS["P08-retrain_free"]
    model = pruned(vector)
    torch.testing.assert_close(model.fc2.weight.data, torch.tensor(vector["expected"]["fc2"]), rtol=1e-6, atol=0)
    assert torch.equal(model.fc1.weight.data, torch.tensor(vector["inputs"]["fc1"]))


def gradients(vector: Vector, batches: int) -> torch.Tensor:
    """[channels, batches] of fc2 by definition: a factor before each channel, and autograd."""
    model = Perceptron(vector["inputs"])
    found = []
    for x, y in batches_of(vector)[:batches]:
        factor = torch.ones(6, requires_grad=True)
        loss = nn.CrossEntropyLoss()(model.fc2(model.act(model.fc1(x)) * factor), y)
        found.append(torch.autograd.grad(loss, factor)[0])
    return torch.stack(found, 1)


def test_p09_one_shot_looks_at_all_batches_first():
    """INC prunes every channel, as it has seen no gradient."""
    vector = VECTORS["P09-retrain_free-oneshot"]
    model = pruned(vector)
    chosen = least_missed(gradients(vector, 8), 3)
    assert (model.fc2.weight.count_nonzero(0) == 0).tolist() == chosen.tolist()
    assert int(chosen.sum()) == 3


def test_p10_data_that_end_early_are_made_do_with():
    """INC leaves the model unpruned."""
    vector = VECTORS["P10-retrain_free-short-loader"]
    with pytest.warns(InexactWarning, match="ended after 3 batches, and the last update is due at batch 5"):
        model = pruned(vector)
    expected = least_missed(gradients(vector, 3)[:, 1:], 3)
    assert (model.fc2.weight.count_nonzero(0) == 0).tolist() == expected.tolist()


def exhaustive(matrix: torch.Tensor, count: int) -> float:
    """The least length of a sum over ``count`` channels."""
    sets = itertools.combinations(range(len(matrix)), count)
    return min(float(matrix[list(chosen)].sum(0).norm()) for chosen in sets)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_chosen_is_missed_less_than_what_is_cheapest_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(8, 5, generator=generator)
    chosen = least_missed(matrix, 4)
    assert int(chosen.sum()) == 4
    length = float(matrix[chosen].sum(0).norm())
    alone = matrix[matrix.square().sum(1).argsort()[:4]].sum(0).norm()
    assert exhaustive(matrix, 4) <= length + 1e-6
    assert length <= float(alone) + 1e-6


@pytest.mark.parametrize(("count", "chosen"), [(0, 0), (3, 3)])
def test_none_or_all(count, chosen):
    assert int(least_missed(torch.randn(3, 2), count).sum()) == chosen


def test_a_whole_model_of_transformers_by_its_own_loss():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=30, **shape)).train()
    model.bert.encoder.layer[0].output.dense.weight.requires_grad_(False)
    batches = [
        {"input_ids": torch.randint(30, (2, 6)), "labels": torch.randint(2, (2,)), "unused": torch.ones(2)}
        for _ in range(6)
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = WeightPruningConfig(
        pruning_type="retrain_free",
        pattern="channelx1",
        op_names=["layer.*output.dense"],
        excluded_op_names=["attention"],
        target_sparsity=0.5,
        pruning_scope="local",
        end_step=4,
        pruning_frequency=2,
    )
    manager = prepare_pruning(model, config, dataloader=batches)
    for index in range(2):
        name = f"bert.encoder.layer.{index}.output.dense.weight"
        weight = model.state_dict()[name]
        dead = weight.count_nonzero(0) == 0
        assert int(dead.sum()) == 16
        assert torch.equal(weight[:, ~dead], before[name][:, ~dead])
    assert all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items() if ".output.dense.w" not in name
    )
    assert model.training
    assert not model.bert.encoder.layer[0].output.dense.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    rows = {row.name: row for row in manager.report().modules if row.pattern}
    assert {(row.units, row.pruned_units, row.asked_sparsity) for row in rows.values()} == {(32, 16, 0.5)}


def test_output_channels_and_convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    batches = [(torch.randn(4, 2, 4, 4), torch.randint(3, (4,))) for _ in range(4)]
    config = WeightPruningConfig(pruning_type="retrain_free", pattern="channelx1", target_sparsity=0.5)
    prepare_pruning(model, config, dataloader=batches, loss_func=nn.CrossEntropyLoss())
    assert int((model[0].weight.permute(0, 2, 3, 1).reshape(8, -1).count_nonzero(0) == 0).sum()) == 9


# ---------------------------------------------------------------------------- refused, with nothing lost


def simple(**options: Any) -> tuple[nn.Module, WeightPruningConfig]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(-1))
    defaults = {"pruning_type": "retrain_free", "pattern": "channelx1", "target_sparsity": 0.5}
    return model, WeightPruningConfig(**(defaults | options))


ROWS = [(torch.ones(2, 4), torch.zeros(2, dtype=torch.long))] * 4


@pytest.mark.parametrize(
    ("more", "options", "kind", "message"),
    [
        ({"dataloader": []}, {}, CalibrationError, "saw 0 batches and took no gradient"),
        ({"dataloader": ROWS}, {"start_step": 6, "end_step": 9}, CalibrationError, "expected more than start_step=6"),
        ({"dataloader": ROWS, "loss_func": None}, {}, ModelError, "Sequential returns no loss for a batch"),
        ({"dataloader": [torch.ones(2, 4)]}, {}, ConfigError, "a batch has no label"),
        ({"dataloader": ROWS, "loss_func": lambda y, t: y.sum() * float("nan")}, {}, CalibrationError, "not finite"),
        ({"dataloader": ROWS, "loss_func": lambda y, t: torch.ones(())}, {}, ModelError, "depends on none of the"),
        ({}, {}, ConfigError, "dataloader=None.: expected batches of inputs, by which 'retrain_free' prunes"),
        ({"dataloader": ROWS, "optimizer": "sgd"}, {}, ConfigError, "does not use it"),
    ],
)
def test_what_cannot_be_is_said_and_the_model_is_as_it_was(more, options, kind, message):
    model, config = simple(**options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(kind, match=message):
        prepare_pruning(model, config, **({"loss_func": nn.functional.nll_loss} | more))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_error_in_the_middle_restores_what_was_pruned_before():
    model, config = simple(end_step=3)
    before = model[2].weight.clone()

    def breaks():
        yield from ROWS[:3]
        message = "the disk is gone"
        raise OSError(message)

    with pytest.raises(OSError, match="the disk is gone"):
        prepare_pruning(model, config, dataloader=breaks(), loss_func=nn.functional.nll_loss)
    assert torch.equal(model[2].weight, before)


def test_it_is_no_type_for_training():
    model, config = simple()
    with pytest.raises(ConfigError, match="'retrain_free' prunes a trained model with calibration data"):
        prepare_compression(model, config)
