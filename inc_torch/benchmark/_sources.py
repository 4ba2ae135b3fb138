"""What a user may name as the model: a module, or where one is saved. Nothing that is read can run code.

| what | how it is opened |
|---|---|
| a module | as it is |
| a directory of ``manager.save`` | `inc_torch.load` into a copy of ``architecture`` |
| a Hugging Face directory | `OptimizedModel.from_pretrained` |
| a file of `torch.save` with a ``state_dict`` | tensors alone are read, into a copy of ``architecture`` |
"""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import nn

from inc_torch.core.errors import ArtifactError, ConfigTypeError
from inc_torch.export import load
from inc_torch.export._files import ARTIFACT, HUB_CONFIG
from inc_torch.huggingface import OptimizedModel
from inc_torch.quantizers import Int8Module, WeightOnlyLinear

__all__ = ["Source", "open_model", "told_apart"]

_WRAPPED: Final = ("state_dict", "model_state_dict", "model")
"""Under which key checkpoints of training loops keep the weights."""


@final
@dataclass(frozen=True, slots=True)
class Source:
    """A model to measure.

    Attributes:
        name: To show.
        model: The model.
    """

    name: str
    model: nn.Module


def open_model(given: object, architecture: nn.Module | None, argument: str) -> Source:
    """Return the model that the user named.

    Args:
        given: A module, or a path.
        architecture: The float model as the user's code builds it; it is copied, not changed.
        argument: What the user calls it, for messages.

    Raises:
        ArtifactError: There is no such model, it is damaged, could run code, or needs an ``architecture``.
        ConfigTypeError: It is of a type that no model has.
    """
    if isinstance(given, nn.Module):
        return Source(type(given).__name__, given)
    if not isinstance(given, str | os.PathLike):
        hint = f" {given.__name__} is a class: give an object of it." if isinstance(given, type) else ""
        message = (
            f"benchmark.fit got {argument} of type {type(given).__name__}: expected a torch.nn.Module, or the path of "
            f"a saved one.{hint}"
        )
        raise ConfigTypeError(message)
    path = Path(given)
    name = path.resolve().name
    if path.is_file():
        return Source(name, _from_file(path, architecture, argument))
    if path.is_dir() and (path / ARTIFACT).is_file() and not (path / HUB_CONFIG).is_file():
        return Source(name, load(path, _copy_of(architecture, path, argument)))
    if path.is_dir():
        opener: Any = OptimizedModel  # which has no instances, so mypy takes each call of it for the end
        model: nn.Module = opener.from_pretrained(os.fspath(given))
        return Source(name, model)
    message = (
        f"{os.fspath(given)!r} does not exist: expected a directory, or a file of torch.save. Check the path (it is "
        f"seen from {os.fspath(Path.cwd())!r}). A model on the Hub is opened by OptimizedModel.from_pretrained(name)."
    )
    raise ArtifactError(message)


def told_apart(first: Source, second: Source) -> tuple[Source, Source]:
    """The same two, by different names: of two with one name it is added what they compute in.

    Example:
        >>> pair = told_apart(Source("Net", nn.Linear(2, 2)), Source("Net", nn.Linear(2, 2).bfloat16()))
        >>> [source.name for source in pair]
        ['Net (float32)', 'Net (bfloat16)']
    """
    if first.name != second.name:
        return first, second
    kinds = _kind(first.model), _kind(second.model)
    if kinds[0] == kinds[1]:
        return first, replace(second, name=f"{second.name} (compared)")
    return replace(first, name=f"{first.name} ({kinds[0]})"), replace(second, name=f"{second.name} ({kinds[1]})")


def _kind(model: nn.Module) -> str:
    modules = [module for module in model.modules() if isinstance(module, Int8Module)]
    if modules:
        return "weight-only" if all(isinstance(module, WeightOnlyLinear) for module in modules) else "int8"
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
    return str(dtype).removeprefix("torch.")


def _copy_of(architecture: object, path: Path, argument: str) -> nn.Module:
    if architecture is None:
        message = (
            f"{argument}={os.fspath(path)!r} holds tensors, and not the code of the model. Pass architecture=, the "
            "float model as your code builds it; on the command line --architecture module:function."
        )
        raise ArtifactError(message)
    if not isinstance(architecture, nn.Module):
        message = f"benchmark.fit got architecture of type {type(architecture).__name__}: expected a torch.nn.Module."
        raise ConfigTypeError(message)
    return copy.deepcopy(architecture)


def _from_file(path: Path, architecture: nn.Module | None, argument: str) -> nn.Module:
    if _is_torchscript(path):
        message = (
            f"{os.fspath(path)!r} is a TorchScript archive, which holds code. If you trust it, open it yourself and "
            "pass the module: torch.jit.load(path)."
        )
        raise ArtifactError(message)
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a file holds: torch's reader for weights alone raises many kinds of errors for those of others.
        message = (
            f"{os.fspath(path)!r} holds more than tensors and plain values, or is damaged; opening it could run code, "
            "so it is not opened. If you trust it, open it yourself and pass the module: torch.load(path, "
            "weights_only=False). Better save model.state_dict(), and pass architecture=."
        )
        raise ArtifactError(message) from error
    if isinstance(content, nn.Module):  # of classes that the user told torch to be safe
        return content
    model = _copy_of(architecture, path, argument)
    state = _state_in(content, path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        message = (
            f"{os.fspath(path)!r} is not a state_dict of {type(model).__name__}: {error}. Pass the architecture that "
            "it was saved from; a compressed model is saved with manager.save(directory)."
        )
        raise ArtifactError(message) from error
    return model.eval()


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


def _is_torchscript(path: Path) -> bool:
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())
    return False
