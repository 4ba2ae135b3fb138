"""Runs the snippets of Neural Compressor's documentation under our package name, twice in one process."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER = Path(__file__).parent / "snippets"


def renamed(text: str) -> str:
    """The one thing that users have to change, unless `inc_torch.compat` is installed."""
    return text.replace("neural_compressor", "inc_torch")


def snippet(name: str) -> str:
    """The words of the documentation under our name."""
    return renamed((FOLDER / name).read_text(encoding="utf-8"))


def run(name: str, /, **names: Any) -> SimpleNamespace:
    """Execute a snippet with ``names`` defined, and return all that is defined afterwards."""
    namespace = dict(names)
    exec(compile(snippet(name), name, "exec"), namespace)
    return SimpleNamespace(**namespace)


def put(name: str, as_name: str = "conf.yaml") -> None:
    """Copy a file of settings into the working directory."""
    shutil.copy(FOLDER / name, as_name)


def twice(test: Callable[..., None]) -> Callable[..., None]:
    """What a process has done before must not matter."""

    @functools.wraps(test)
    def run_twice(*args: Any, **kwargs: Any) -> None:
        for _ in range(2):
            test(*args, **kwargs)

    return run_twice
