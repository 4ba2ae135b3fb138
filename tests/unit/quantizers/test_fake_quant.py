"""Values and gradients of fake-quant."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from inc_torch.quantizers._codes import InputGrid, snap, snap_weight
from inc_torch.quantizers._fake_quant import fake_quantize_input, fake_quantize_weight

GRID = InputGrid(0.5, 4, 15)  # values -2 ... 5.5


def test_gradient_passes_inside_and_is_zero_outside():
    x = torch.tensor([-3.0, -2.3, -2.2, -2.0, 0.0, 0.3, 5.5, 5.7, 5.8, 100.0], requires_grad=True)
    factors = torch.arange(1.0, 11.0)
    y = fake_quantize_input(x, GRID)
    (y * factors).sum().backward()
    assert y.tolist() == [-2.0, -2.0, -2.0, -2.0, 0.0, 0.5, 5.5, 5.5, 5.5, 5.5]
    assert x.grad.tolist() == [0.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 0.0, 0.0]


def test_gradient_agrees_with_torch_own_fake_quant():
    x = (torch.randn(4000) * 3).requires_grad_()
    other = x.detach().clone().requires_grad_()
    factors = torch.randn(4000)
    (fake_quantize_input(x, GRID) * factors).sum().backward()
    y = torch.fake_quantize_per_tensor_affine(other, GRID.scale, GRID.zero_point, 0, GRID.top)
    (y * factors).sum().backward()
    assert torch.equal(fake_quantize_input(x, GRID), y)
    assert torch.equal(x.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_its_dtype_forward_and_backward(dtype):
    x = torch.randn(64, dtype=dtype, requires_grad=True)
    y = fake_quantize_input(x, GRID)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(y, snap(x, GRID))


def test_input_is_not_written_to():
    x = torch.randn(10)
    before = x.clone()
    fake_quantize_input(x, GRID)
    assert torch.equal(x, before)


def test_second_derivative_is_zero_not_an_error():
    x = torch.tensor([0.3], requires_grad=True)
    (first,) = torch.autograd.grad(fake_quantize_input(x, GRID).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert first.item() == 1.0
    assert second.item() == 2.0  # of 2 * round(x), whose slope is taken as 1


@pytest.mark.parametrize("axis", [0, 1, None])
def test_weight_gradient_is_the_identity(axis):
    weight = torch.randn(5, 6, requires_grad=True)
    factors = torch.randn(5, 6)
    y = fake_quantize_weight(weight, axis)
    (y * factors).sum().backward()
    assert torch.equal(y, snap_weight(weight, axis))
    assert torch.equal(weight.grad, factors)


def test_weight_follows_its_range_at_once():
    weight = torch.tensor([[1.0, 0.5]])
    fake_quantize_weight(weight, 0)
    weight.mul_(100)
    assert fake_quantize_weight(weight, 0)[0, 0].item() == pytest.approx(100 * 127 / 127.5)


def test_gradients_through_checkpointing():
    x = torch.randn(32, requires_grad=True)
    factors = torch.randn(32)
    (checkpoint(fake_quantize_input, x, GRID, use_reentrant=False) * factors).sum().backward()
    through, x.grad = x.grad, None
    (fake_quantize_input(x, GRID) * factors).sum().backward()
    assert torch.equal(through, x.grad)
