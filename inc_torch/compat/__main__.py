"""``python -m inc_torch.compat script.py arguments``: run a script that was written for Intel Neural Compressor.

With ``--replace`` before the script, inc_torch stands in for Intel Neural Compressor where that is installed too; with
``-m module`` a module is run instead of a file, as by ``python -m``.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Final

from inc_torch.compat import install
from inc_torch.core.errors import ConfigError

USAGE: Final = (
    "Usage: python -m inc_torch.compat [--replace] script.py [arguments]\n"
    "       python -m inc_torch.compat [--replace] -m module [arguments]\n"
    "Run a script that imports neural_compressor by inc_torch, without changing it."
)
_WRONG: Final = 2


def main(words: list[str]) -> None:
    """Run the script that ``words`` names, with the rest of them as its arguments."""
    replace = words[:1] == ["--replace"]
    words = words[replace:]
    is_module = words[:1] == ["-m"]
    words = words[is_module:]
    if not words or words[0] in {"-h", "--help"}:
        sys.stderr.write(USAGE + "\n")
        sys.exit(0 if words else _WRONG)
    script = words[0]
    if not is_module and not Path(script).exists():
        sys.stderr.write(f"{script!r} does not exist (it is seen from {os.fspath(Path.cwd())!r}).\n{USAGE}\n")
        sys.exit(_WRONG)
    try:
        install(replace=replace)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(_WRONG)
    sys.argv[:] = words
    if is_module:
        sys.path[0] = os.fspath(Path.cwd())
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.fspath(Path(script).resolve().parent)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
