"""Where results of a command go besides the screen."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from inc_torch.core import files
from inc_torch.core.errors import ConfigError

__all__ = ["write_text"]


def write_text(target: Path, text: str) -> None:
    """Write ``text`` to a file, or print it if the file is called ``-``.

    Raises:
        ConfigError: There is no such folder, or it is a folder itself.
    """
    if os.fspath(target) == "-":
        typer.echo(text)
        return
    if target.is_dir() or not target.parent.is_dir():
        message = f"{os.fspath(target)!r} cannot be written: expected a file in a folder that is there."
        raise ConfigError(message)
    files.write_text(target, text + "\n")
