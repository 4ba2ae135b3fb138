"""Losses and optimizers that 1.X objects are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from inc_torch import DistillationConfig, KnowledgeDistillationLossConfig
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.experimental.common import Criterions, Optimizers
from inc_torch.experimental.common.criterion import (
    PyTorchIntermediateLayersKnowledgeDistillationLoss,
    PyTorchKnowledgeDistillationLoss,
    PyTorchSelfKnowledgeDistillationLoss,
)
from inc_torch.experimental.common.optimizer import optimizer_of
from tests.scenarios.models import classifier, digits

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "distillation.json").read_text(encoding="utf-8"))


def tensor(described):
    if isinstance(described, list):
        return torch.tensor(described)
    return torch.tensor(described["data"]).reshape(described["shape"])


@pytest.mark.parametrize("case", VECTORS["kd_criterion_call"], ids=lambda case: case["id"])
def test_called_with_labels_it_is_the_loss_of_the_task(case):
    inputs = case["inputs"]
    criterion = PyTorchKnowledgeDistillationLoss(**case["config"])
    (output, targets) = (tensor(inputs["student_output"]), tensor(inputs["targets"]))
    assert float(criterion(output, targets)) == pytest.approx(case["expected"]["loss"], rel=1e-5)


def test_parts_of_knowledge_distillation():
    criterion = PyTorchKnowledgeDistillationLoss(2.0, ["CE", "KL"], [0.25, 0.75])
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    hard, soft = nn.functional.cross_entropy(student, labels), criterion.teacher_student_loss_cal(student, teacher)
    assert torch.equal(criterion.student_targets_loss_cal(student, labels), hard)
    assert torch.equal(criterion.loss_cal(student, labels), hard)
    assert float(criterion.loss_cal_sloss(student, teacher, hard)) == pytest.approx(float(0.25 * hard + 0.75 * soft))
    with pytest.raises(ConfigError, match="PyTorchKnowledgeDistillationLoss has no teacher: give it teacher_model"):
        criterion.teacher_model_forward(student)


def test_the_teacher_is_asked_without_gradients_and_stays_as_it_is():
    teacher = classifier().train()
    criterion = PyTorchKnowledgeDistillationLoss(teacher_model=teacher)
    output = criterion.teacher_model_forward((torch.ones(2, 8), torch.zeros(2)))
    assert torch.equal(output, teacher(torch.ones(2, 8)).detach())
    assert not output.requires_grad
    assert teacher.training


def test_layers_are_compared_in_a_loop_of_ones_own():
    student, teacher = classifier(), classifier(1)
    criterion = PyTorchIntermediateLayersKnowledgeDistillationLoss(
        [["0", "0"]], ["MSE"], [0.5], True, student_model=student, teacher_model=teacher
    )
    inputs = digits(1)[0][0]
    criterion.clear_features()
    given = criterion.teacher_model_forward(inputs)
    loss = criterion.loss_cal_sloss(student(inputs), given, torch.tensor(2.0))
    expected = 2.0 + 0.5 * (student[0](inputs) - teacher[0](inputs)).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    criterion.clear_features()
    criterion.teacher_model_forward(inputs * 2)
    again = criterion.loss_cal_sloss(student(inputs * 2), None, 0.0)
    expected = 0.5 * (student[0](inputs * 2) - teacher[0](inputs * 2)).square().mean()
    assert again.item() == pytest.approx(expected.item())
    criterion.remove_all_hooks()
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())
    assert float(criterion(None, torch.zeros(1))) == 0.0


def test_one_without_a_student_says_so():
    criterion = PyTorchIntermediateLayersKnowledgeDistillationLoss([["0", "0"]])
    with pytest.raises(ConfigError, match="has no student: give it student_model, and teacher_model"):
        criterion.loss_cal_sloss(torch.ones(1), None, 0.0)


def test_outputs_learn_from_each_other():
    criterion = PyTorchSelfKnowledgeDistillationLoss(
        [[["early", "deep"]]], ["L2"], [0.5], student_model=classifier(), add_origin_loss=True
    )
    outputs = {"early": torch.tensor([[3.0, 0.0]]), "deep": torch.tensor([[0.0, 4.0]])}
    assert float(criterion.loss_cal_sloss(outputs, None, torch.tensor(1.0))) == 3.5


def test_a_criterion_says_what_a_configuration_says():
    criterion = PyTorchKnowledgeDistillationLoss(2.0, ["CE", "KL"], [0.25, 0.75])
    expected = KnowledgeDistillationLossConfig(2.0, ["CE", "KL"], [0.25, 0.75])
    assert criterion.loss_config == expected
    assert DistillationConfig(criterion=criterion).criterion == expected


def test_criterions_by_name():
    assert Criterions("pytorch_fx")["KnowledgeDistillationLoss"]({"temperature": 2.0}).temperature == 2.0
    assert type(Criterions("pytorch")["CrossEntropyLoss"]({"reduction": "sum"})).__name__ == "CrossEntropyLoss"
    with pytest.raises(ConfigError, match=r"Criterions\.name='KD': expected one of KnowledgeDistillationLoss"):
        Criterions("pytorch")["KD"]
    with pytest.raises(ConfigError, match=r"Criterions\.framework='tensorflow': expected one of 'pytorch'"):
        Criterions("tensorflow")


@pytest.mark.parametrize(
    ("described", "kind", "expected"),
    [
        (None, torch.optim.SGD, {"lr": 0.001, "momentum": 0}),
        (
            {"SGD": {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 4e-4}},
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 4e-4},
        ),
        ({"Adam": {"beta_1": 0.8, "epsilon": 1e-6}}, torch.optim.Adam, {"betas": (0.8, 0.999), "eps": 1e-6}),
        ({"AdamW": {"amsgrad": True}}, torch.optim.AdamW, {"amsgrad": True, "lr": 0.001}),
    ],
)
def test_optimizers(described, kind, expected):
    made = optimizer_of(described)([nn.Parameter(torch.ones(1))])
    assert type(made) is kind
    assert {name: made.defaults[name] for name in expected} == expected


def test_what_is_no_optimizer():
    with pytest.raises(ConfigError, match=r"optimizer='Adma': expected one of SGD, Adam, AdamW\. Did you mean 'Adam'"):
        optimizer_of({"Adma": {}})
    with pytest.raises(
        ConfigTypeError, match=r"optimizer\.SGD has no option 'learning_rat'\. Did you mean 'learning_rate'"
    ):
        optimizer_of({"SGD": {"learning_rat": 0.1}})
    with pytest.raises(ConfigError, match=r"Optimizers\.name='LBFGS': expected one of SGD"):
        Optimizers("pytorch")["LBFGS"]
