"""What a user may name as the model: a module, or where one is saved. Nothing that is read can run code.

| what | how it is opened |
|---|---|
| a module | as it is |
| a directory of ``model.save`` | `inc_torch.load` into a copy of ``architecture`` |
| a Hugging Face directory | `OptimizedModel.from_pretrained` |
| a file of `torch.save` with a ``state_dict`` | tensors alone are read, into a copy of ``architecture`` |
| a pickled module, an exported program, TorchScript | if ``is_trusted``, as each can run code |
"""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from inc_torch.core.errors import ArtifactError, ConfigTypeError
from inc_torch.export import load
from inc_torch.export._files import ARTIFACT, HUB_CONFIG
from inc_torch.huggingface import OptimizedModel

__all__ = ["open_model"]

_WRAPPED: Final = ("state_dict", "model_state_dict", "model")
"""Under which key checkpoints of training loops keep the weights."""
_OTHERS: Final = {
    ".pb": "TensorFlow",
    ".h5": "Keras",
    ".keras": "Keras",
    ".tflite": "TensorFlow Lite",
    ".onnx": "ONNX",
    ".xml": "OpenVINO",
    ".params": "MXNet",
}
"""Endings of files that other frameworks read."""
_SAVED_MODEL: Final = "saved_model.pb"


def open_model(
    given: object,
    architecture: object = None,
    *,
    owner: str = "open_model",
    argument: str = "model",
    is_trusted: bool = False,
) -> nn.Module:
    """Return the model that the user named.

    Args:
        given: A module, or a path.
        architecture: The float model as the user's code builds it; it is copied, not changed.
        owner: What the user called, for messages.
        argument: What the user calls ``given``, for messages.
        is_trusted: Whether files are opened that can run code as they are.

    Raises:
        ArtifactError: There is no such model, it is damaged, could run code, or needs an ``architecture``.
        ConfigTypeError: It is of a type that no model has.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> open_model(layer) is layer
        True
    """
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, str | os.PathLike):
        hint = f" {given.__name__} is a class: give an object of it." if isinstance(given, type) else ""
        message = (
            f"{owner} got {argument} of type {type(given).__name__}: expected a torch.nn.Module, or the path of "
            f"a saved one.{hint}"
        )
        raise ConfigTypeError(message)
    unchecked: object = architecture
    if unchecked is not None and not isinstance(unchecked, nn.Module):
        message = f"{owner} got architecture of type {type(architecture).__name__}: expected a torch.nn.Module."
        raise ConfigTypeError(message)
    path = Path(given)
    _refuse_other_frameworks(path)
    if path.is_file():
        return _from_file(path, architecture, argument, is_trusted)
    if path.is_dir() and (path / ARTIFACT).is_file() and not (path / HUB_CONFIG).is_file():
        return load(path, _copy_of(architecture, path, argument))
    if path.is_dir():
        opener: Any = OptimizedModel  # which has no instances, so mypy takes each call of it for the end
        model: nn.Module = opener.from_pretrained(os.fspath(given))
        return model
    message = (
        f"{os.fspath(given)!r} does not exist: expected a directory, or a file of torch.save. Check the path (it is "
        f"seen from {os.fspath(Path.cwd())!r}). A model on the Hub is opened by OptimizedModel.from_pretrained(name)."
    )
    raise ArtifactError(message)


def _refuse_other_frameworks(path: Path) -> None:
    framework = _OTHERS.get(path.suffix.lower())
    if framework is None and (path / _SAVED_MODEL).is_file():
        framework = _OTHERS[".pb"]
    if framework is not None:
        message = (
            f"{os.fspath(path)!r} is a model of {framework}: inc_torch compresses models of PyTorch only. Give the "
            "torch.nn.Module that it was made from, or a model that PyTorch saved."
        )
        raise ArtifactError(message)


def _copy_of(architecture: nn.Module | None, path: Path, argument: str) -> nn.Module:
    if architecture is None:
        message = (
            f"{argument}={os.fspath(path)!r} holds tensors, and not the code of the model. Pass architecture=, the "
            "float model as your code builds it; on the command line --architecture module:function."
        )
        raise ArtifactError(message)
    return copy.deepcopy(architecture)


def _from_file(path: Path, architecture: nn.Module | None, argument: str, is_trusted: bool) -> nn.Module:
    names = _names_in(path)
    if any(name.endswith("constants.pkl") for name in names):
        return _of_code(path, "a TorchScript archive", "torch.jit.load(path)", torch.jit.load, is_trusted)
    if path.suffix == ".pt2" or any(name.endswith("archive_format") for name in names):
        opened = "torch.export.load(path).module()"
        return _of_code(path, "an exported program", opened, lambda file: torch.export.load(file).module(), is_trusted)
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=not is_trusted)
    except Exception as error:
        # Whatever a file holds: torch's reader for weights alone raises many kinds of errors for those of others.
        message = (
            f"{os.fspath(path)!r} holds more than tensors and plain values, or is damaged; opening it could run code, "
            "so it is not opened. If you trust it, open it yourself and pass the module: torch.load(path, "
            "weights_only=False). Better save model.state_dict(), and pass architecture=."
        )
        raise ArtifactError(message) from error
    if isinstance(content, nn.Module):  # of a file that is trusted, or of classes that the user told torch to be safe
        return content
    state = _state_in(content, path)
    return _filled(_copy_of(architecture, path, argument), state, path)


def _filled(model: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        message = (
            f"{os.fspath(path)!r} is not a state_dict of {type(model).__name__}: {error}. Pass the architecture that "
            "it was saved from; a compressed model is saved with manager.save(directory)."
        )
        raise ArtifactError(message) from error
    return model.eval()


def _of_code(path: Path, kind: str, call: str, open_it: Any, is_trusted: bool) -> nn.Module:  # noqa: ANN401
    """A file whose opening can run code."""
    if is_trusted:
        model: nn.Module = open_it(path)
        return model
    message = (
        f"{os.fspath(path)!r} is {kind}, which holds code. If you trust it, open it yourself and pass the module: "
        f"{call}."
    )
    raise ArtifactError(message)


def _state_in(content: object, path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict itself, or the one in the checkpoint of a training loop."""
    candidates = [content, *(content.get(key) for key in _WRAPPED if isinstance(content, Mapping))]
    for state in candidates:
        if isinstance(state, Mapping) and state and all(isinstance(value, torch.Tensor) for value in state.values()):
            return state
    message = (
        f"{os.fspath(path)!r} holds {type(content).__name__}, expected a state_dict, or a dict with one under "
        f"{', '.join(map(repr, _WRAPPED))}. Save model.state_dict()."
    )
    raise ArtifactError(message)


def _names_in(path: Path) -> list[str]:
    """What is in a file that is an archive; nothing if it is none."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return archive.namelist()
    return []
