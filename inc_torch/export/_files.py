"""Reading and writing files so that a cut, damaged or foreign one is told apart with a message that helps."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from inc_torch.core.errors import ArtifactError
from inc_torch.core.files import parse_json, second_name, write_text, written_aside

__all__ = [
    "ARTIFACT",
    "HUB_CONFIG",
    "WEIGHTS",
    "as_noted",
    "check_tables",
    "file_facts",
    "pickled_files",
    "read_json",
    "read_tensor",
    "read_tensors",
    "replacing",
    "tensor_names",
    "tensor_shape",
    "weight_files",
    "write_json",
    "write_tensors",
]

WEIGHTS = "model.safetensors"
ARTIFACT = "compression.json"
HUB_CONFIG = "config.json"
_KEPT = re.compile(r"\.[0-9a-f]{64}$")
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
"""Endings of files that hold pickled Python objects, which can run code when they are opened."""


def pickled_files(directory: Path) -> list[str]:
    """Names of the files in ``directory`` whose endings say that they are pickled."""
    return sorted(path.name for path in directory.iterdir() if path.suffix in PICKLED and path.is_file())


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files in ``directory``, sorted by name."""
    return sorted(path for path in directory.glob("*.safetensors") if path.is_file())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as JSON; ``path`` holds either the old or the new text, also when the write is cut."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file; it must exist.
        way_out: The sentence that ends the message.

    Raises:
        ArtifactError: The file is no text, no JSON, or no JSON object.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{os.fspath(path)!r} is damaged or cut short: got {error}, expected JSON. {way_out}"
        raise ArtifactError(message) from error
    if not isinstance(data, dict):
        message = f"{os.fspath(path)!r} holds {type(data).__name__!r}, expected a JSON object. {way_out}"
        raise ArtifactError(message)
    return data


def check_tables(data: Mapping[str, Any], kinds: Mapping[str, type], where: str, way_out: str) -> None:
    """Make sure that objects have values of one kind.

    Args:
        data: The tables, by name.
        kinds: Of what kind the values of each are.
        where: What ``data`` is, for the message.
        way_out: The sentence that ends it.

    Raises:
        ArtifactError: One is no object, or has another value.
    """
    for key, kind in kinds.items():
        table = data[key]
        entries = table.items() if isinstance(table, Mapping) else [(None, table)]
        for name, value in entries:
            if name is None or not isinstance(value, kind):
                place = f"{where}: {key!r}" + ("" if name is None else f"[{name!r}]")
                want = "an object" if name is None else "text" if kind is str else "an object"
                message = f"{place} is {reprlib.repr(value)}, expected {want}. {way_out}"
                raise ArtifactError(message)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write ``tensors`` as safetensors; ``path`` holds either the old or the new file, also when the write is cut."""
    with written_aside(path) as unfinished:
        save_file(dict(tensors), unfinished, metadata={"format": "pt"})


def read_tensors(path: Path, way_out: str) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise ArtifactError(_damaged(path, error, way_out)) from error


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """Read one tensor of a whole safetensors file."""
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def tensor_shape(path: Path, name: str) -> tuple[int, ...]:
    """The shape of one tensor of a whole safetensors file, from its header."""
    with safe_open(path, framework="pt") as file:
        return tuple(file.get_slice(name).get_shape())


def tensor_names(path: Path, way_out: str) -> set[str]:
    """Names of the tensors in a safetensors file, from its header; the length of the file is checked too.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ArtifactError(_damaged(path, error, way_out)) from error


def file_facts(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def replacing(directory: Path, facts: Mapping[str, object]) -> Iterator[None]:
    """Let files be replaced, of which a description that is written after them says what they are.

    While that is not there, those that the earlier description means go by a second name, under which `as_noted` finds
    them. An error brings them back; a killed process leaves both.

    Args:
        directory: Where they are.
        facts: By name of the file, what the earlier description says of it, as `file_facts`; None if there is none.
    """
    paths = [directory / name for name in facts]
    there = [path for path in paths if path.is_file()]
    kept = {path: second for path in there if (second := _kept(path, facts[path.name]))}
    for path, second in kept.items():
        if not second.exists():  # else an earlier save was killed, and ``path`` is what it wrote
            second_name(path, second)
    try:
        yield
    except BaseException:
        for path, second in kept.items():
            second.replace(path)  # does nothing if both are names of one file still
            second.unlink(missing_ok=True)
        for path in paths:
            if path not in there:
                path.unlink(missing_ok=True)
        raise
    for path in paths:
        for second in path.parent.glob(f".{path.name}.*"):
            if _KEPT.search(second.name):
                second.unlink(missing_ok=True)


def as_noted(path: Path, facts: object) -> Path:
    """The file that a description means: ``path``, or what is kept of it after a save that was cut short."""
    kept = _kept(path, facts)
    return path if kept is None or not kept.is_file() else kept


def _kept(path: Path, facts: object) -> Path | None:
    digest = facts.get("sha256") if isinstance(facts, Mapping) else None
    is_digest = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
    return path.with_name(f".{path.name}.{digest}") if is_digest else None


def _damaged(path: Path, error: Exception, way_out: str) -> str:
    return f"{os.fspath(path)!r} is damaged or cut short: got {error}, expected a whole safetensors file. {way_out}"
