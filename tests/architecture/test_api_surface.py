"""The public API changes only on purpose: names and signatures are compared with a checked-in list."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("api_surface.py")
SURFACE = Path(__file__).with_name("api_surface.txt")


def test_the_public_api_is_the_recorded_one():
    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    recorded = SURFACE.read_text(encoding="utf-8") if SURFACE.exists() else ""
    diff = difflib.unified_diff(recorded.splitlines(), result.stdout.splitlines(), "recorded", "now", lineterm="", n=1)
    difference = "\n".join(diff)
    assert not difference, (
        f"The public API differs from {SURFACE.name}:\n{difference}\n"
        "If that is meant, run `make api`, look at the change, and add a line to CHANGELOG.md."
    )
