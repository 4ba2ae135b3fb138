"""A small model with convolutions and linear layers, compressed for real."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inc_torch.quantizers import QuantSpec, convert, enable_fake_quant, prepare_fake_quant


class Net(nn.Module):
    """Convolutions, a norm with buffers, an embedding, two linear layers."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.words = nn.Embedding(11, width)
        self.fc = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, image, word):
        seen = self.norm(self.conv(image)).relu().mean(dim=(2, 3))
        return self.head((self.fc(seen + self.words(word))).relu())


def batch():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(5, 3, 8, 8, generator=generator), torch.tensor([0, 3, 10, 5, 5])


def quantize(model, *inputs):
    """QAT without training: observe one batch, convert."""
    prepare_fake_quant(model, QuantSpec())
    enable_fake_quant(model, observe=True)
    model.train()
    with torch.no_grad():
        model(*inputs)
    convert(model)
    return model.eval()


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def int8_net(net):
    """The net with half of a weight pruned, quantized."""
    net.fc.weight.data[:4] = 0
    return quantize(net, *batch())


@pytest.fixture
def inputs():
    return batch()


@pytest.fixture
def new_net():
    return Net
