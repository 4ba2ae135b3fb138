"""Only where the extension is installed; elsewhere the tests of its errors stand in tests/unit/ipex."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("intel_extension_for_pytorch") else ["test_*.py"]


def pytest_configure(config):
    # transformers 4.49 is the one that works with NumPy 1; that it opens no compressed directories is known.
    config.addinivalue_line("filterwarnings", "ignore:This transformers is too old")
