"""Knowledge distillation: INC's numbers, the formula's edges, its checks."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from inc_torch.core.errors import ConfigError, ModelError
from inc_torch.distillers import (
    LOSSES,
    KnowledgeDistillation,
    kl_divergence,
    soft_cross_entropy,
    soft_squared_error,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "distillation.json").read_text(encoding="utf-8"))
NEAR = {"rtol": 1e-5, "atol": 1e-6}


def _tensor(value):
    return torch.tensor(value["data"]).reshape(value["shape"]) if isinstance(value, dict) else torch.tensor(value)


def _loss(config):
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    return KnowledgeDistillation(**fields)


def _by_id(section):
    return [pytest.param(case, id=case["id"]) for case in VECTORS[section]]


def _close(actual, expected):
    torch.testing.assert_close(actual, _tensor(expected), **NEAR)


def test_the_vectors_are_there():
    assert len(VECTORS["kd"]) == 19
    assert len(VECTORS["kd_criterion_call"]) == 2


@pytest.mark.parametrize("case", _by_id("kd"))
def test_combined_loss_and_gradients_are_those_of_inc(case):
    student, teacher, task = (
        _tensor(case["inputs"][name]).requires_grad_() for name in ("student_output", "teacher_output", "student_loss")
    )
    expected = case["expected"]
    value = _loss(case["config"]).combine(student, teacher, task)
    assert value.shape == ()
    _close(value, expected["loss"])
    value.backward()
    assert teacher.grad is None  # on purpose: INC lets the gradient through
    for name, tensor in (("grad_student_output", student), ("grad_student_loss", task)):
        if expected.get(name) is not None:
            _close(tensor.grad, expected[name])
        elif name in expected:
            assert tensor.grad is None


@pytest.mark.parametrize("case", _by_id("kd"))
def test_distance_is_that_of_inc(case):
    student, teacher = (_tensor(case["inputs"][name]) for name in ("student_output", "teacher_output"))
    distance = _loss(case["config"]).distance(student, teacher)
    if "distill_term_unweighted" in case["expected"]:
        _close(distance, case["expected"]["distill_term_unweighted"])
    else:  # weights 0.5 and 0.5
        _close(0.5 * case["inputs"]["student_loss"] + 0.5 * distance, case["expected"]["loss"])


@pytest.mark.parametrize("case", _by_id("kd_criterion_call"))
def test_hard_loss_is_that_of_inc(case):
    inputs = case["inputs"]
    value = _loss(case["config"]).hard_loss(_tensor(inputs["student_output"]), _tensor(inputs["targets"]))
    _close(value, case["expected"]["loss"])


@pytest.mark.parametrize(
    ("kind", "function"), [("CE", soft_cross_entropy), ("KL", kl_divergence), ("MSE", soft_squared_error)]
)
def test_the_formula(kind, function):
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    loss = KnowledgeDistillation(3.0, ("CE", kind), (0.2, 0.8))
    expected = 0.2 * 1.5 + 0.8 * 9 * function(student, teacher, 3.0)
    torch.testing.assert_close(loss.combine(student, teacher, torch.tensor(1.5)), expected)


def test_mse_does_not_depend_on_temperature():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    values = [
        KnowledgeDistillation(temperature, ("CE", "MSE"), (0.0, 1.0)).distance(student, teacher)
        for temperature in (0.5, 1.0, 7.0)
    ]
    torch.testing.assert_close(values, [F.mse_loss(student, teacher)] * 3)


def test_batchmean_is_as_many_times_larger_as_there_are_classes():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    small, large = (
        KnowledgeDistillation(2.0, ("CE", "KL"), kl_reduction=reduction).distance(student, teacher)
        for reduction in ("mean", "batchmean")
    )
    torch.testing.assert_close(large, 5 * small)


def test_a_part_of_weight_zero_is_not_looked_at():
    only_task = KnowledgeDistillation(loss_weights=(1.0, 0.0))
    only_teacher = KnowledgeDistillation(loss_weights=(0.0, 1.0))
    assert not only_task.needs_teacher
    assert only_teacher.needs_teacher
    assert only_task.combine("no output", None, torch.tensor(0.25)).item() == 0.25
    logits = torch.randn(2, 3)
    assert torch.isfinite(only_teacher.combine(logits, logits, torch.full((7,), math.nan)))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_the_result_is_a_new_tensor_with_gradient_and_the_inputs_stay(weights):
    student = torch.randn(2, 3, requires_grad=True)
    task, teacher = student.square().mean(), torch.randn(2, 3)
    before = [tensor.detach().clone() for tensor in (student, task, teacher)]
    versions = [tensor._version for tensor in (student, task, teacher)]
    value = KnowledgeDistillation(2.0, loss_weights=weights).combine(student, teacher, task)
    assert value is not task
    assert value.requires_grad
    value.backward()
    assert student.grad.abs().sum() > 0
    assert [tensor._version for tensor in (student, task, teacher)] == versions
    torch.testing.assert_close([student.detach(), task.detach(), teacher], before, rtol=0, atol=0)


@pytest.mark.parametrize("task", [0.75, np.float32(0.75), 1, torch.tensor([0.75]), torch.tensor(0.75).bfloat16()])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.5, 0.5)])
def test_any_single_number_is_a_student_loss(task, weights):
    logits = torch.zeros(2, 4)
    value = KnowledgeDistillation(loss_types=("CE", "MSE"), loss_weights=weights).combine(logits, logits, task)
    assert isinstance(value, torch.Tensor)
    assert value.shape == ()
    assert value.item() == weights[0] * float(task)


def test_a_student_loss_of_several_numbers_is_refused():
    logits = torch.zeros(2, 4)
    with pytest.raises(
        ModelError, match=r"student_loss has shape \(2,\): expected a single number. Reduce it with .mean"
    ):
        KnowledgeDistillation().combine(logits, logits, torch.ones(2))


def test_a_student_loss_that_is_no_number_is_refused():
    logits = torch.zeros(2, 4)
    with pytest.raises(ModelError, match=r"student_loss is of type NoneType: expected a tensor .* the weight 0"):
        KnowledgeDistillation().combine(logits, logits, None)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (3,)), ((), ())])
def test_shapes_must_be_equal(shapes):
    student, teacher = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ModelError) as caught:
        KnowledgeDistillation().combine(student, teacher, 0.0)
    text = str(caught.value)
    assert f"The student's output has shape {shapes[0]} and the teacher's {shapes[1]}: expected one shape" in text
    assert "Use a teacher with the same classes" in text


def test_containers_on_both_sides():
    student, teacher, task = torch.randn(2, 3), torch.randn(2, 3), torch.tensor(0.3)
    loss = KnowledgeDistillation()
    expected = loss.combine(student, teacher, task)
    torch.testing.assert_close(loss.combine((task, student), {"logits": teacher}, task), expected)
    torch.testing.assert_close(loss.combine({"logits": student}, [teacher], task), expected)


@pytest.mark.parametrize("kind", ["CE", "KL", "MSE"])
@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_question_answering_is_the_mean_over_start_and_end(kind, reduction):
    student_start, student_end, teacher_start, teacher_end = torch.randn(4, 3, 6)
    loss = KnowledgeDistillation(2.0, ("CE", kind), (0.0, 1.0), reduction)
    value = loss.distance(
        QuestionAnsweringModelOutput(start_logits=student_start, end_logits=student_end),
        {"start_logits": teacher_start, "end_logits": teacher_end},
    )
    expected = (loss.distance(student_start, teacher_start) + loss.distance(student_end, teacher_end)) / 2
    torch.testing.assert_close(value, expected)


def test_teacher_logits_keep_their_precision_beside_a_bfloat16_student():
    student = torch.randn(4, 5).bfloat16().requires_grad_()
    teacher = torch.randn(4, 5)
    loss = KnowledgeDistillation(2.0, ("CE", "KL"), (0.5, 0.5))
    value = loss.combine(student, teacher, torch.tensor(0.5).bfloat16())
    expected = loss.combine(student.detach().float(), teacher, torch.tensor(0.5))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), expected, rtol=0, atol=0)
    value.backward()
    assert student.grad.dtype == torch.bfloat16


def test_integer_and_float64_teacher_logits_are_converted():
    student = torch.randn(2, 3)
    loss = KnowledgeDistillation(loss_types=("CE", "MSE"), loss_weights=(0.0, 1.0))
    expected = F.mse_loss(student, torch.ones(2, 3))
    for dtype in (torch.int64, torch.float64, torch.float16):
        torch.testing.assert_close(loss.distance(student, torch.ones(2, 3, dtype=dtype)), expected)


@pytest.mark.parametrize("kind", ["CE", "KL", "MSE"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_padded_positions_do_not_count_if_asked(kind, dtype):
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=dtype)
    loss = KnowledgeDistillation(2.0, ("CE", kind), (0.0, 1.0), ignore_padding=True)
    real = [side.reshape(-1, 5)[[0, 1, 3]] for side in (student, teacher)]
    torch.testing.assert_close(loss.distance(student, teacher, mask), loss.distance(*real))
    counting = dataclasses.replace(loss, ignore_padding=False)
    torch.testing.assert_close(counting.distance(student, teacher, mask), counting.distance(student, teacher))


def test_a_padding_mask_of_another_form_does_not_concern_the_output():
    student, teacher = torch.randn(2, 5), torch.randn(2, 5)
    loss = KnowledgeDistillation(ignore_padding=True)
    torch.testing.assert_close(loss.distance(student, teacher, torch.zeros(2, 3)), loss.distance(student, teacher))


def test_a_batch_of_nothing_but_padding_is_refused():
    loss = KnowledgeDistillation(ignore_padding=True)
    with pytest.raises(ModelError, match=r"Every position .*attention_mask is all 0\): expected at least one"):
        loss.distance(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2))


def test_hard_loss_of_containers_and_of_sequences():
    logits, classes = torch.randn(2, 4, 3), torch.tensor([[0, 1, 3], [2, 2, 0]])
    value = KnowledgeDistillation().hard_loss({"logits": logits}, classes)
    torch.testing.assert_close(value, F.cross_entropy(logits, classes))
    half = KnowledgeDistillation(loss_types=("MSE", "CE")).hard_loss(logits.bfloat16(), torch.zeros(2, 4, 3))
    torch.testing.assert_close(half, logits.bfloat16().float().square().mean())


def test_hard_loss_refuses_to_broadcast():
    loss = KnowledgeDistillation(loss_types=("MSE", "CE"))
    with pytest.raises(ModelError, match=r"has shape \(2, 1\) and the targets \(2,\): expected one shape .* 'MSE'"):
        loss.hard_loss(torch.zeros(2, 1), torch.zeros(2))


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("temperature", 0.0, "a finite number greater than 0"),
        ("temperature", -1, "a finite number greater than 0"),
        ("temperature", math.inf, "a finite number greater than 0"),
        ("temperature", math.nan, "a finite number greater than 0"),
        ("loss_types", ("KL", "CE"), "the first one of ('CE', 'MSE')"),
        ("loss_types", ("CE", "L2"), "the second one of ('CE', 'KL', 'MSE', 'L1', 'cosine')"),
        ("loss_types", ("CE",), "two names"),
        ("loss_weights", (0.5, 0.6), "two numbers in [0, 1] that sum to 1"),
        ("loss_weights", (-0.5, 1.5), "two numbers in [0, 1] that sum to 1"),
        ("loss_weights", (1.0,), "two numbers in [0, 1] that sum to 1"),
        ("kl_reduction", "sum", "one of ('mean', 'batchmean')"),
    ],
)
def test_wrong_values_are_named(field, value, rule):
    with pytest.raises(ConfigError) as caught:
        KnowledgeDistillation(**{field: value})
    assert f"KnowledgeDistillation.{field}={value!r}: expected " in str(caught.value)
    assert rule in str(caught.value)


def test_weights_may_sum_to_one_up_to_rounding():
    assert KnowledgeDistillation(loss_weights=(0.1 + 0.2, 0.7)).needs_teacher


def test_it_is_registered_and_frozen():
    assert LOSSES.get("KnowledgeDistillationLoss") is KnowledgeDistillation
    with pytest.raises(dataclasses.FrozenInstanceError):
        KnowledgeDistillation().temperature = 2.0
