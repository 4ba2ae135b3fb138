"""The distances as numbers: closed forms, a second way to compute them, gradients, extreme values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from inc_torch.distillers import kl_divergence, soft_cross_entropy, soft_squared_error

DISTANCES = [soft_cross_entropy, kl_divergence, soft_squared_error]


def _pair(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)


def test_soft_cross_entropy_of_two_classes_by_hand():
    # Teacher odds 3:1, student odds 1:1 after the division by T = 2.
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(math.log(2))
    assert soft_cross_entropy(teacher, student, 2.0).item() == pytest.approx(-math.log(3) / 2 + math.log(4))


def test_kl_divergence_of_two_classes_by_hand():
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl_divergence(student, teacher, reduction="batchmean").item() == pytest.approx(divergence)
    assert kl_divergence(student, teacher).item() == pytest.approx(divergence / 2)


def test_soft_squared_error_by_hand():
    student, teacher = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    assert soft_squared_error(student, teacher).item() == 2.0
    assert soft_squared_error(student, teacher, temperature=2.0).item() == 0.5


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distances_agree_with_torch(shape, temperature):
    student, teacher = _pair(*shape)
    rows, soft = student.reshape(-1, 5) / temperature, F.softmax(teacher.reshape(-1, 5) / temperature, -1)
    torch.testing.assert_close(soft_cross_entropy(student, teacher, temperature), F.cross_entropy(rows, soft))
    divergences = F.kl_div(F.log_softmax(student / temperature, -1), soft.reshape(shape), reduction="none")
    torch.testing.assert_close(kl_divergence(student, teacher, temperature), divergences.mean())
    torch.testing.assert_close(
        kl_divergence(student, teacher, temperature, "batchmean"), divergences.sum() / divergences.shape[0]
    )
    torch.testing.assert_close(
        soft_squared_error(student, teacher, temperature), F.mse_loss(student, teacher) / temperature**2
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_to_both_sides(distance):
    student, teacher = (side.requires_grad_() for side in _pair(2, 3, 4))
    assert torch.autograd.gradcheck(lambda s, t: distance(s, t, 1.7), (student, teacher))


def test_batchmean_gradient():
    student, teacher = (side.requires_grad_() for side in _pair(3, 4))
    assert torch.autograd.gradcheck(lambda s, t: kl_divergence(s, t, 2.0, "batchmean"), (student, teacher))


def test_gradient_of_soft_cross_entropy_is_the_difference_of_probabilities():
    student, teacher = _pair(3, 4)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(soft_cross_entropy(student, teacher), student)
    torch.testing.assert_close(gradient, (F.softmax(student.detach(), -1) - F.softmax(teacher, -1)) / 3)


def test_kl_of_equal_logits_is_zero_and_distances_are_never_negative():
    student, teacher = _pair(6, 7)
    assert kl_divergence(student, student).item() == 0
    assert soft_squared_error(student, student).item() == 0
    assert kl_divergence(student, teacher).item() > 0


@pytest.mark.parametrize("distance", [soft_cross_entropy, kl_divergence])
def test_shifting_all_logits_changes_nothing(distance):
    student, teacher = _pair(3, 4)
    torch.testing.assert_close(distance(student + 1000, teacher - 1000), distance(student, teacher))


@pytest.mark.parametrize("distance", DISTANCES)
def test_large_logits_stay_finite(distance):
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = distance(student, torch.tensor([[-1e4, 1e4, 0.0]]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("distance", [soft_cross_entropy, kl_divergence])
def test_a_class_that_both_exclude_does_not_count(distance):
    student = torch.tensor([[0.3, -1.0, -math.inf]], requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, -math.inf]])
    value = distance(student, teacher)
    share = 2 / 3 if distance is kl_divergence else 1  # the element mean divides by three classes
    torch.testing.assert_close(value, distance(student[:, :2], teacher[:, :2]) * share)
    value.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[0, 2] == 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_nan_is_not_hidden(distance):
    clean, broken = torch.zeros(2, 3), torch.tensor([[0.0, math.nan, 0.0], [0.0, 0.0, 0.0]])
    assert distance(broken, clean).isnan()
    assert distance(clean, broken).isnan()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(distance, dtype):
    student, teacher = (side.to(dtype) for side in _pair(4, 9, dtype=torch.float32))
    expected = distance(student.float(), teacher.float(), 3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distance(student, teacher, 3.0)
    for value in (distance(student, teacher, 3.0), inside):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_float64_stays_float64(distance):
    assert distance(*_pair(2, 3)).dtype == torch.float64
