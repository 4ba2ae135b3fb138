"""Self-distillation: its formula, INC's arithmetic, what it does without mappings, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import inc_torch
from inc_torch import DistillationConfig, SelfKnowledgeDistillationLossConfig, prepare_compression
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, ModelError
from inc_torch.distillers import SelfDistillation, kl_divergence, soft_cross_entropy

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "distillation.json").read_text(encoding="utf-8"))["self"]
CASES = [pytest.param(case, id=case["id"]) for case in VECTORS]
NEAR = {"rtol": 1e-5, "atol": 1e-6}


def outputs_of(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    given = case["inputs"]["outputs"]
    return {name: torch.tensor(value["data"]).view(value["shape"]).requires_grad_() for name, value in given.items()}


def loss_of(case: dict[str, Any], outputs: dict[str, torch.Tensor], **more: bool) -> torch.Tensor:
    loss = SelfKnowledgeDistillationLossConfig(**case["config"], **more).to_spec()
    return loss.mix(torch.tensor(case["inputs"]["student_loss"]), loss.distance(outputs, None))


def test_the_vectors_are_there():
    assert len(VECTORS) == 6


@pytest.mark.parametrize("case", CASES)
def test_each_group_counts_once_with_a_temperature_for_all_soft_ones(case):
    found = loss_of(case, outputs_of(case))
    assert found.shape == ()
    torch.testing.assert_close(found, torch.tensor(case["expected"]["loss_temperature_on_all_soft_groups"]), **NEAR)


@pytest.mark.parametrize("case", CASES)
def test_on_demand_it_is_computed_as_by_inc(case):
    outputs = outputs_of(case)
    found = loss_of(case, outputs, inc_compat=True)
    torch.testing.assert_close(found, torch.tensor(case["expected"]["loss_inc26"]), **NEAR)
    found.backward()
    pairs = [pair for group in case["config"]["layer_mappings"] for pair in group]
    learning, teaching = ({pair[side] for pair in pairs} for side in (0, 1))
    assert not learning & teaching
    for name in learning:
        expected = case["expected"]["grad_inc26"][name]
        torch.testing.assert_close(outputs[name].grad, torch.tensor(expected["data"]).view(expected["shape"]), **NEAR)
    assert all(outputs[name].grad is None for name in teaching)


def test_groups_against_plain_formulas():
    torch.manual_seed(0)
    a, b, c = (torch.randn(3, 4) for _ in range(3))
    config = SelfKnowledgeDistillationLossConfig(
        [[["a", "c"], ["b", "c"]], [["a", "b"]], [["b", "c"]]], 2.0, ["CE", "KL", "L2"], [0.5, 1.0, 0.25], True
    )
    loss = config.to_spec()
    expected = 0.5 * (soft_cross_entropy(a, c, 2.0) + soft_cross_entropy(b, c, 2.0)) + kl_divergence(a, b, 2.0)
    expected = expected + 0.25 * (b - c).square().sum().sqrt() + 7.0
    torch.testing.assert_close(loss.mix(7.0, loss.distance({"a": a, "b": b, "c": c}, None)), expected)


def test_a_weight_of_zero_for_all_groups_saves_the_work():
    loss = SelfKnowledgeDistillationLossConfig([[["a", "b"]]], loss_weights=[0], add_origin_loss=True).to_spec()
    assert not loss.has_distance
    assert not loss.needs_teacher
    assert loss.mix(torch.tensor(3.0), None) == 3.0


def test_the_documented_defaults():
    spec = SelfKnowledgeDistillationLossConfig([[["a", "b"]], [["a", "c"]]]).to_spec()
    assert (spec.loss_types, spec.loss_weights, spec.temperature) == (("CE", "CE"), (0.5, 0.5), 1.0)
    config = SelfKnowledgeDistillationLossConfig([[("a", "b")]], temperature=3).config
    assert config.SelfKnowledgeDistillationLoss.temperature == 3.0
    assert SelfKnowledgeDistillationLossConfig.from_dict(
        SelfKnowledgeDistillationLossConfig([[["a", "b"]]]).to_dict()
    ) == SelfKnowledgeDistillationLossConfig([[["a", "b"]]])


# ---------------------------------------------------------------------------- in a loop


class Exits(nn.Module):
    """Three depths, each with a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {}
        for index, (part, head) in enumerate(zip(self.parts, self.heads, strict=True)):
            x = part(x).relu()
            outputs[f"exit{index}"] = head(x)
        return outputs


def test_early_exits_come_nearer_to_the_last_one():
    model, batch = Exits(), torch.randn(16, 6)
    target = model(batch)["exit2"].detach().argmax(-1)
    criterion = SelfKnowledgeDistillationLossConfig(
        [[["exit0", "exit2"], ["exit1", "exit2"]]], loss_types=["KL"], loss_weights=[1.0], add_origin_loss=True
    )
    manager = prepare_compression(model, DistillationConfig(criterion=criterion))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    manager.on_train_begin()
    distances = []
    for step in range(60):
        manager.on_step_begin(step)
        outputs = model(batch)
        task = nn.functional.cross_entropy(outputs["exit2"], target)
        loss = manager.on_after_compute_loss(batch, outputs, task)
        distances.append(float((loss - task).detach()))
        loss.backward()
        manager.on_before_optimizer_step()
        optimizer.step()
        manager.on_after_optimizer_step()
        optimizer.zero_grad()
        manager.on_step_end()
    manager.on_train_end()
    assert distances[-1] < 0.3 * distances[0]
    (callback,) = manager.callbacks.callbacks_list
    assert callback.metrics()["distillation_loss"] == pytest.approx(distances[-1], rel=1e-4)


def test_without_mappings_every_output_learns_from_the_last_and_the_task_counts():
    outputs = {name: torch.randn(3, 4, requires_grad=True) for name in ("a", "b", "last")}
    loss = SelfKnowledgeDistillationLossConfig(temperature=2).to_spec()
    found = loss.mix(torch.tensor(5.0), loss.distance({**outputs, "other": "no tensor"}, None))
    last = outputs["last"].detach()
    expected = 5 + (soft_cross_entropy(outputs["a"], last, 2.0) + soft_cross_entropy(outputs["b"], last, 2.0)) / 2
    torch.testing.assert_close(found, expected)
    found.backward()
    assert outputs["last"].grad is None
    tensors = tuple(outputs.values())
    torch.testing.assert_close(loss.distance(tensors, None), expected - 5)


def test_s15_a_single_output_keeps_the_loss_and_its_gradient():
    """INC fails with an IndexError, or returns a constant 0 without a gradient if a teacher_output is given."""
    model = nn.Linear(4, 2)
    manager = prepare_compression(model, DistillationConfig(model, inc_torch.SelfKnowledgeDistillationLossConfig()))
    manager.on_train_begin()
    manager.on_step_begin(0)
    output = model(torch.randn(3, 4))
    task = output.square().mean()
    with pytest.warns(InexactWarning, match="no two tensors have one shape: there is nothing to learn from"):
        loss = manager.on_after_compute_loss(None, output, task)
    assert torch.equal(loss, task)
    loss.backward()
    assert bool(model.weight.grad.any())


# ---------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"layer_mappings": [["a", "b"]]},
            ConfigTypeError,
            r"\[0\]\[0\]='a': expected the names of two outputs.*A group",
        ),
        (
            {"layer_mappings": [[["a", "b", "c"]]]},
            ConfigError,
            r"layer_mappings\[0\]\[0\]=\['a', 'b', 'c'\]: expected the",
        ),
        ({"layer_mappings": [[["a", 1]]]}, ConfigTypeError, r"layer_mappings\[0\]\[0\]\[1\]=1"),
        ({"layer_mappings": [[["a", "b"]]], "loss_types": ["CE", "KL"]}, ConfigError, "one for each of the 1 groups"),
        ({"layer_mappings": [[["a", "b"]]], "loss_types": ["MSE"]}, ConfigError, "loss_types.*'MSE'.*'CE', 'KL', 'L2'"),
        (
            {"layer_mappings": [[["a", "b"]]], "loss_weights": [1.5]},
            ConfigError,
            r"loss_weights\[0\]=1.5: expected a num",
        ),
        ({"temperature": 0}, ConfigError, "temperature=0: expected a number above 0"),
    ],
)
def test_wrong_options_are_named(options, kind, message):
    with pytest.raises(kind, match=message):
        SelfKnowledgeDistillationLossConfig(**options)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.ones(2, 3), "got an output of type Tensor: expected a dict of tensors by name"),
        (
            {"exit": torch.ones(2)},
            "no tensor 'exit1' among the model's outputs 'exit', as layer_mappings asks for. Did",
        ),
        (
            {"exit1": torch.ones(2, 3), "exit2": torch.ones(2, 4)},
            r"'exit1' of shape \(2, 3\) and 'exit2' of shape \(2, 4\)",
        ),
    ],
)
def test_wrong_outputs_are_named(output, message):
    loss = SelfKnowledgeDistillationLossConfig([[["exit1", "exit2"]]]).to_spec()
    with pytest.raises(ModelError, match=message):
        loss.distance(output, None)


@pytest.mark.parametrize("name", ["SelfKnowledgeDistillationLoss", "SelfKnowledgeDistillationLossConfig"])
def test_a_criterion_by_name_class_or_dict(name):
    for criterion in (name, SelfKnowledgeDistillationLossConfig, {name: {}}):
        assert DistillationConfig(criterion=criterion).criterion == SelfKnowledgeDistillationLossConfig()


@pytest.mark.parametrize(
    "options",
    [
        {"loss_types": ("CE",)},
        {"loss_weights": (2.0,), "groups": ((("a", "b"),),), "loss_types": ("CE",)},
        {"temperature": 0},
    ],
)
def test_the_typed_loss_checks_itself(options):
    with pytest.raises(ConfigError):
        SelfDistillation(**options)
