"""Reading a pickled file so that nothing but tensors and plain values can come out of it."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  the error alone, nothing is unpickled
from typing import Any, Final

import torch

from inc_torch.core.errors import ArtifactError

__all__ = ["CONFIGURE", "FILE_NAMES", "find_file", "read_file"]

FILE_NAMES: Final = ("best_model.pt", "pytorch_model.bin")
"""What INC saves: by ``save``, and in directories for the hub."""
CONFIGURE: Final = "best_configure"
"""Under which key the configuration lies among the tensors."""


def find_file(source: str | os.PathLike[str]) -> Path | None:
    """The file in a directory that may be INC's, or the file itself; None if there is none."""
    path = Path(source)
    if path.is_file():
        return path
    return next((path / name for name in FILE_NAMES if (path / name).is_file()), None)


def read_file(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Read the state and the configuration that INC wrote, by torch's reader for weights alone.

    That reader makes tensors and plain values, and refuses whatever would have to be called to be made.

    Returns:
        The state, by name, and what was under ``best_configure``.

    Raises:
        ArtifactError: The file holds other objects, is cut short, or is not INC's.
    """
    shown = os.fspath(path)
    if _is_torchscript(path):
        message = (
            f"{shown!r} is a TorchScript program, as INC saves with backend='ipex': expected a state with "
            f"{CONFIGURE!r}. Running it would run what is in it. Quantize the float model again with inc_torch."
        )
        raise ArtifactError(message)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about the storages and quantized tensors of its old files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        message = (
            f"{shown!r} was not opened: it holds more than tensors and plain values, and to build that could run code "
            f"({_first_line(error)}). Get the file from where it was made, or convert it there."
        )
        raise ArtifactError(message) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        message = f"{shown!r} cannot be read: {_first_line(error)}. It may be cut short; copy it again."
        raise ArtifactError(message) from error
    if not isinstance(content, Mapping) or not isinstance(content.get(CONFIGURE), Mapping):
        message = (
            f"{shown!r} is not a quantized model of INC 2.X: expected a state with {CONFIGURE!r} in it. A plain state "
            "dict goes into the model by model.load_state_dict(torch.load(path, weights_only=True))."
        )
        raise ArtifactError(message)
    state = {str(name): value for name, value in content.items() if name != CONFIGURE}
    return state, content[CONFIGURE]


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
