"""Weights of all ranks as matrices of outputs by inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inc_torch.pruners import MatrixView
from tests.unit.pruners.vectors import Conv1D

CASES = [
    (nn.Linear(3, 5), (0, 1), (5, 3)),
    (nn.Conv1d(3, 5, 2), (0, 2, 1), (5, 2, 3)),
    (nn.Conv2d(3, 5, (2, 4)), (0, 2, 3, 1), (5, 2, 4, 3)),
    (nn.Conv3d(3, 5, (1, 2, 4)), (0, 2, 3, 4, 1), (5, 1, 2, 4, 3)),
    (nn.Conv2d(6, 4, 3, groups=2), (0, 2, 3, 1), (4, 3, 3, 3)),
    (nn.ConvTranspose1d(3, 5, 2), (1, 2, 0), (5, 2, 3)),
    (nn.ConvTranspose2d(3, 5, (2, 4)), (1, 2, 3, 0), (5, 2, 4, 3)),
    (nn.ConvTranspose3d(3, 5, (1, 2, 4)), (1, 2, 3, 4, 0), (5, 1, 2, 4, 3)),
    (Conv1D(5, 3), (1, 0), (5, 3)),
]


@pytest.mark.parametrize(("module", "axes", "sizes"), CASES, ids=lambda value: getattr(value, "_get_name", str)())
def test_outputs_are_rows_and_inputs_run_fastest(module, axes, sizes):
    view = MatrixView.of(module, module.weight.shape)
    assert (view.axes, view.sizes) == (axes, sizes)
    assert view.height == sizes[0]
    assert view.channels == sizes[-1]
    assert view.height * view.width == module.weight.numel()


@pytest.mark.parametrize("module", [case[0] for case in CASES], ids=lambda module: module._get_name())
def test_there_and_back(module):
    view = MatrixView.of(module, module.weight.shape)
    weight = torch.arange(float(module.weight.numel())).view(module.weight.shape)
    ordered = view.ordered(weight)
    assert ordered.data_ptr() == weight.data_ptr(), "a view, no copy"
    assert torch.equal(view.restored(ordered.contiguous()), weight)
    assert torch.equal(view.restored(ordered.reshape(view.height, view.width)), weight)


def test_hugging_face_conv1d_is_turned_round():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    module = conv1d(5, 3)
    assert tuple(module.weight.shape) == (3, 5)
    assert MatrixView.of(module, module.weight.shape) == MatrixView((1, 0), (5, 3))


def test_a_convolution_row_is_kernel_positions_of_all_inputs():
    weight = torch.arange(12.0).view(1, 3, 2, 2)
    ordered = MatrixView.of(nn.Conv2d(3, 1, 2), weight.shape).ordered(weight)
    assert ordered.reshape(1, -1).tolist() == [[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]]
