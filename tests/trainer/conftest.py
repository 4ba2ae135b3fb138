"""Each test gets a fresh accelerate, whose settings are kept for the whole process."""

from __future__ import annotations

import os

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]  # TrainingArguments speaks to accelerate through the environment
    os.environ.update(before)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
