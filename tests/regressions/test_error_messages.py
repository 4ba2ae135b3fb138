"""Errors that explained nothing, and results that were None: here the cause is named, or it works."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import inc_torch
from inc_torch import PostTrainingQuantConfig


def test_calibration_fails_when_the_batch_size_of_a_loader_is_none():
    loader = DataLoader([torch.ones(2, 8)] * 3, batch_size=None)
    assert loader.batch_size is None
    model = inc_torch.quantization.fit(
        nn.Sequential(nn.Linear(8, 4)), PostTrainingQuantConfig(), calib_dataloader=loader
    )
    assert type(model[0]).__name__ == "Int8Linear"


def test_calibration_does_not_accept_batches_that_are_dicts():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, inputs, mask=None):
            return self.layer(inputs if mask is None else inputs * mask)

    batches = [{"mask": torch.ones(2, 8), "inputs": torch.full((2, 8), 3.0)}] * 2
    model = inc_torch.quantization.fit(Named(), PostTrainingQuantConfig(), calib_dataloader=batches)
    assert float(model.layer.input_scale) * 255 == pytest.approx(3.0), "keys are names of arguments, in any order"
