"""What the tests of the compiled kernels share."""

from __future__ import annotations

import pytest
import torch

from inc_torch import kernels
from inc_torch.kernels import Activation, Clamp, Grid
from inc_torch.kernels._build import missing_features
from inc_torch.quantizers._codes import InputGrid, encode

MISSING = missing_features()
needs_processor = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
CHANNELS_LAST = torch.channels_last

ACTIVATIONS = {
    Activation.NONE: lambda y: y,
    Activation.RELU: torch.relu,
    Activation.RELU6: torch.nn.functional.relu6,
    Activation.GELU: torch.nn.functional.gelu,
    Activation.GELU_TANH: lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
    Activation.SILU: torch.nn.functional.silu,
    Activation.HARDSWISH: torch.nn.functional.hardswish,
    Activation.HARDSIGMOID: torch.nn.functional.hardsigmoid,
    Activation.TANH: torch.tanh,
    Activation.SIGMOID: torch.sigmoid,
    Clamp(-0.5, 0.75): lambda y: y.clamp(-0.5, 0.75),
}


def grid(scale, zero_point):
    """A grid whose scale float32 holds, as stored scales do."""
    return Grid(float(torch.tensor(scale)), zero_point)


def codes(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def weights(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def reference_codes(values, grid):
    shared = InputGrid(grid.scale, grid.zero_point, 255)
    return encode(values, shared, shared.shift)


def run(*steps):
    kernels.Program(steps).run()


def assert_rounded(actual, exact, grid):
    """Codes are those of the exact values, but for the few that lie on a border within float32's error."""
    expected = (exact / grid.scale + grid.zero_point).round().clamp(0, 255)
    difference = (actual.double() - expected).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() <= 0.04
