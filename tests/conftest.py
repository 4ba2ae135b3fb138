"""What every test gets: one thread, fixed seeds, no network, and a place to print a measured number."""

from __future__ import annotations

import os

# Read by torch, transformers and tokenizers when they are imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
# Else accelerate hands training to Intel's extension wherever that is installed.
os.environ.setdefault("ACCELERATE_USE_IPEX", "false")

import importlib.util
import random

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.support.versions import IS_OLD, skip_what_is_newer

torch.set_num_threads(1)

# The same examples in every run; no deadline, because a shared machine may pause at any line.
settings.register_profile("inc_torch", derandomize=True, deadline=None, database=None)
settings.load_profile("inc_torch")

_SEED = 0

_OPTIONAL = {
    "lightning": ["lightning"],
    "peft": ["composition/test_peft.py", "composition/test_peft_scores.py", "unit/callbacks/test_adapters.py"],
    "trl": ["trainer/test_adapters.py", "trainer/test_other_trainers.py"],
}
"""Tests of packages that CI has and the environment of the oldest releases has not."""

_ABSENT = [package for package in _OPTIONAL if importlib.util.find_spec(package) is None]
collect_ignore = [path for package in _ABSENT for path in _OPTIONAL[package]]


def pytest_report_header():
    return [f"left out, as {package} is not installed: {', '.join(_OPTIONAL[package])}" for package in _ABSENT]


def pytest_configure(config):
    if IS_OLD:
        config.addinivalue_line("filterwarnings", "ignore:This transformers is too old")
    if importlib.util.find_spec("intel_extension_for_pytorch"):
        # Of torch, once anybody has imported the extension; its gradients are right, see tests/ipex/test_beside.py.
        config.addinivalue_line("filterwarnings", "ignore:.*an autograd kernel was not registered:UserWarning")


def pytest_collection_modifyitems(items):
    skip_what_is_newer(items)


@pytest.fixture(autouse=True)
def _seed_everything():
    """Start each test from the same random state, whatever ran before it."""
    random.seed(_SEED)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)


@pytest.fixture
def note(record_property):
    """Print one line in the summary at the end of the run: ``note("import: 12 ms")``."""

    def write(line: str) -> None:
        record_property("note", line)

    return write


def pytest_terminal_summary(terminalreporter):
    lines = [
        f"{report.nodeid}: {value}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for key, value in report.user_properties
        if key == "note"
    ]
    if lines:
        terminalreporter.section("notes", sep="-")
        for line in sorted(lines):
            terminalreporter.write_line(line)
