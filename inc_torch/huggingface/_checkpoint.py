"""The file with our state in a checkpoint of the Trainer: where it lies, how it is written and read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments

from inc_torch.core import files
from inc_torch.core.errors import StateError
from inc_torch.core.state import check_keys
from inc_torch.huggingface._trainer import path_in_train_call

__all__ = ["STATE_FILE", "checkpoint_to_resume", "read_state", "write_state", "written_checkpoint"]

STATE_FILE = "inc_torch_state.pt"
TRAINER_STATE = "trainer_state.json"


def checkpoint_to_resume(args: TrainingArguments, state: TrainerState, trainer: object) -> Path:
    """The checkpoint that training goes on from."""
    named = path_in_train_call(trainer) or args.resume_from_checkpoint
    return Path(named) if isinstance(named, str) else written_checkpoint(args, state)


def written_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The checkpoint of the present step, the newest where a search makes one folder a trial."""
    name = f"checkpoint-{state.global_step}"
    root = Path(args.output_dir or ".")
    found = [path for path in (root / name, *root.glob(f"run-*/{name}")) if (path / TRAINER_STATE).is_file()]
    return max(found, key=lambda path: (path / TRAINER_STATE).stat().st_mtime_ns, default=root / name)


def write_state(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Write ``content``, whole or not at all."""
    files.made_directory(checkpoint)
    files.write_state(checkpoint / STATE_FILE, content)


def read_state(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `write_state` wrote; nothing but tensors and plain values is unpickled.

    Raises:
        StateError: The file is not there, or damaged.
    """
    path = Path(checkpoint) / STATE_FILE
    if not path.is_file():
        whole = sorted(
            (other.parent for other in Path(checkpoint).parent.glob(f"checkpoint-*/{STATE_FILE}")),
            key=lambda folder: folder.stat().st_mtime_ns,
        )
        instead = f" Resume from {os.fspath(whole[-1])!r}, which has one." if whole else ""
        message = (
            f"{os.fspath(path)!r} is not there: the checkpoint was written without INCCallback, or the run was cut "
            f"while it wrote it. Masks and ranges of that step are lost.{instead}"
        )
        raise StateError(message)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        message = f"{os.fspath(path)!r} cannot be read: {error}. Resume from another checkpoint."
        raise StateError(message) from error
    check_keys(os.fspath(path), content, {"manager", "reached_at"})
    return dict(content)
