"""Only where the extension is installed; elsewhere the tests of its errors stand in tests/unit/ipex."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("intel_extension_for_pytorch") else ["test_*.py"]
