"""Frozen batch normalization: running statistics in training mode, gradients as ever."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from inc_torch.quantizers import batch_norms, freeze_batch_norm, thaw_batch_norm

KINDS = {
    "1d": (lambda: nn.BatchNorm1d(3), (4, 3)),
    "1d of sequences": (lambda: nn.BatchNorm1d(3), (4, 3, 5)),
    "2d": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 5)),
    "3d": (lambda: nn.BatchNorm3d(3), (2, 3, 2, 2, 2)),
    "synchronized": (lambda: nn.SyncBatchNorm(3), (4, 3, 5)),
}


def used(layer, shape):
    """A layer whose statistics are not those of its beginning, and an input for it."""
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    return layer, torch.randn(shape) * 3 + 1


@pytest.mark.parametrize(("make", "shape"), KINDS.values(), ids=KINDS)
def test_frozen_is_eval_in_training_mode_and_leaves_statistics_alone(make, shape):
    layer, x = used(make(), shape)
    plain = copy.deepcopy(layer).eval()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    freeze_batch_norm(layer)
    for module in (layer.train(), plain):
        (module(x) ** 2).sum().backward()
    assert torch.equal(layer(x), plain(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    for ours, others in zip(layer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, others.grad)
        assert ours.grad.abs().sum() > 0


@pytest.mark.parametrize(("make", "shape"), list(KINDS.values())[:4], ids=list(KINDS)[:4])
def test_thawed_is_what_it_was(make, shape):
    layer, x = used(make(), shape)
    plain = copy.deepcopy(layer)
    kind = type(layer)
    freeze_batch_norm(layer)
    freeze_batch_norm(layer)
    assert isinstance(layer, kind)
    thaw_batch_norm(layer)
    assert type(layer) is kind
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.running_mean, plain.running_mean)


class Doubled(nn.BatchNorm2d):
    """A subclass, which may compute anything."""


def test_what_can_be_frozen():
    model = nn.Sequential(
        nn.BatchNorm2d(3), Doubled(3), nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3), nn.ReLU()
    )
    kinds = [type(module) for module in model]
    assert batch_norms(model) == {"0": True, "1": False}
    freeze_batch_norm(model)
    assert batch_norms(model) == {"0": True, "1": False}
    assert [type(module) for module in model][1:] == kinds[1:]
    assert type(model[0]) is not kinds[0]


def test_frozen_without_scale_and_shift():
    layer, x = used(nn.BatchNorm2d(3, affine=False), (4, 3, 5, 5))
    freeze_batch_norm(layer)
    expected = (x - layer.running_mean.view(3, 1, 1)) / (layer.running_var.view(3, 1, 1) + layer.eps).sqrt()
    assert torch.allclose(layer.train()(x), expected, atol=1e-6)


def test_frozen_modules_are_copied_and_pickled():
    layer, x = used(nn.BatchNorm2d(3), (2, 3, 4, 4))
    freeze_batch_norm(layer)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), layer(x))
        assert torch.equal(twin.running_mean, layer.running_mean)


def test_wrong_input_gets_an_error_of_torch():
    layer = nn.BatchNorm2d(3)
    freeze_batch_norm(layer)
    with pytest.raises(RuntimeError, match="running_mean should contain 4 elements not 3"):
        layer(torch.randn(2, 4, 5, 5))
