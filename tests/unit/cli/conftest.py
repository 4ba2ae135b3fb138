"""What the tests of sub-commands share: a folder of models, and a way to run the command."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from inc_torch.cli._app import app

MODELS = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

def needs_more(size):
    return nn.Linear(size, size)

number = 5
data = [(torch.ones(4, 8), torch.tensor([0, 1, 0, 1]))] * 9

def loader():
    return data

def exact(model):
    return 1.0

def only_float(model):
    return float(type(model[0]) is type(model[2]) is nn.Linear)

class Breaks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        raise ArithmeticError("broken for good")
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with a file of models, which is the working directory."""
    (tmp_path / "own_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_models", None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


@pytest.fixture
def run():
    """Run ``inc-torch`` with these words."""
    return lambda *words: CliRunner().invoke(app, list(words))
