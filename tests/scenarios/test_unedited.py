"""The same snippets without any change, by `inc_torch.compat`."""

from __future__ import annotations

import inspect
import sys

import pytest

from inc_torch import compat
from tests.scenarios import running, test_1x, test_2x, test_orchestration

TESTS = [
    test
    for module in (test_1x, test_2x, test_orchestration)
    for name, test in vars(module).items()
    if name.startswith("test_s") and not inspect.signature(test).parameters and " run(" in inspect.getsource(test)
]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__)
def test_unedited(test, monkeypatch):
    monkeypatch.setattr(running, "renamed", lambda text: text)
    compat.install()
    try:
        test()
        used = [name for name in sys.modules if name.startswith("neural_compressor.")]
    finally:
        compat.uninstall()
    assert used


def test_how_many_there_are():
    assert len(TESTS) == 18
