"""Files that are whole or not there, and JSON that is nothing else: what every writer and reader of files stands on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from inc_torch.core.errors import UnwritableError

__all__ = ["made_directory", "parse_json", "second_name", "write_state", "write_text", "written_aside"]


def made_directory(path: Path) -> None:
    """Make a directory to write into, if it is not there.

    Raises:
        UnwritableError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{os.fspath(path)!r} could not be made: {error}. Give a directory where you may write."
        raise UnwritableError(message) from error


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give the name of a file to write; when it is written, it takes the place of ``path``.

    Whatever happens in between, ``path`` holds the old content or the new one. A killed process leaves the other file
    behind, an error does not.

    Args:
        path: The file; its folder is there. A link is replaced, what it leads to stays as it is.

    Raises:
        UnwritableError: The disk is full, the folder is read-only, or whatever else the system says of it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_aside(Path(folder, "a.txt")) as aside:
        ...         _ = aside.write_text("whole")
        ...     Path(folder, "a.txt").read_text(), len(list(Path(folder).iterdir()))
        ('whole', 1)
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield aside
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        state = "It is as it was before" if path.exists() else "Nothing of it is there"
        message = (
            f"{os.fspath(path)!r} could not be written: {error}. {state}. Make room or ask for the right to write "
            "there, or give another path."
        )
        raise UnwritableError(message) from error
    finally:
        with suppress(OSError):  # gone after the rename, or never made where nothing can be
            aside.unlink()


def second_name(path: Path, second: Path) -> None:
    """Let a file have another name, under which it stays when ``path`` is replaced: a hard link, else a copy.

    Raises:
        UnwritableError: It can be neither.
    """
    try:
        second.hardlink_to(path)
    except OSError:  # a file system without hard links
        with written_aside(second) as aside:
            shutil.copyfile(path, aside)


def write_text(path: Path, text: str) -> None:
    """Write a file of text, whole or not at all.

    Raises:
        UnwritableError: As of `written_aside`.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values by `torch.save`, whole or not at all.

    Raises:
        UnwritableError: As of `written_aside`.
    """
    with written_aside(path) as aside, aside.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # what torch's writer makes of an error of the system
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def parse_json(text: str) -> object:
    """Read JSON.

    Raises:
        ValueError: It is none, has a key twice in one object, of which only one could count, or is nested too deeply.

    Example:
        >>> parse_json('{"a": [1, null]}')
        {'a': [1, None]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' stands twice in one object
    """
    try:
        value: object = json.loads(text, object_pairs_hook=_without_repetitions)
    except RecursionError as error:
        message = "lists and objects are nested too deeply"
        raise ValueError(message) from error
    return value


def _without_repetitions(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        message = f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in one object"
        raise ValueError(message)
    return found
