"""Objects that a user names on the command line: ``package.module:name``, or ``file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from torch import nn

from inc_torch.core.errors import ConfigError, did_you_mean

__all__ = ["is_reference", "made", "model_or_path", "module_of", "resolve"]


def is_reference(text: str) -> bool:
    """Whether ``text`` names an object in a module, and is no path of something that is there.

    Example:
        >>> is_reference("my_models:build"), is_reference("runs/int8"), is_reference("owner/model")
        (True, False, False)
    """
    module, colon, name = text.rpartition(":")
    return bool(colon and module) and name.replace(".", "_").isidentifier() and not Path(text).exists()


def resolve(text: str, option: str) -> object:
    """Import the module, which runs its code, and return the object; modules in the working directory are found too.

    Args:
        text: ``module:name`` or ``file.py:name``.
        option: What the user gave it for, for messages.

    Raises:
        ConfigError: There is no such module, or nothing of that name in it.

    Example:
        >>> resolve("torch.nn:ReLU", "--architecture").__name__
        'ReLU'
    """
    source, _, name = text.rpartition(":")
    if not source or not name:
        message = f"{option} got {text!r}: expected module:name or file.py:name, such as my_models:build."
        raise ConfigError(message)
    found = _imported(source, option)
    for part in name.split("."):
        if not hasattr(found, part):
            message = f"{option} got {text!r}: {source!r} has no {part!r}.{did_you_mean(part, dir(found))}"
            raise ConfigError(message)
        found = getattr(found, part)
    return found


def model_or_path(text: str, option: str) -> nn.Module | str:
    """The module that the user's function makes, or the path that ``text`` is."""
    return module_of(text, option) if is_reference(text) else text


def module_of(text: str, option: str) -> nn.Module:
    """The module that the user's function makes.

    Raises:
        ConfigError: It makes something else, or there is no such function.
    """
    module = made(text, option)
    if not isinstance(module, nn.Module):
        message = f"{option} got {text!r}, which gives {type(module).__name__}: expected a torch.nn.Module."
        raise ConfigError(message)
    return module


def made(text: str, option: str) -> Any:  # noqa: ANN401  whatever the user's function returns
    """The object itself, or what the function or class of that name returns."""
    found: Any = resolve(text, option)
    is_made = isinstance(found, nn.Module) or (hasattr(found, "__iter__") and not isinstance(found, type))
    if is_made or not callable(found):
        return found
    try:
        return found()
    except Exception as error:
        error.add_note(f"While calling {text!r} of {option}, without arguments.")
        raise


def _imported(source: str, option: str) -> object:
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            message = f"{option} got {source!r}: there is no such file (it is seen from {str(Path.cwd())!r})."
            raise ConfigError(message)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            message = f"{option} got {source!r}: expected a file of Python."
            raise ConfigError(message)
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not source.startswith(error.name):
            raise  # something that the module itself imports
        message = (
            f"{option} got {source!r}: there is no module {error.name!r}. Install it, or name a file: file.py:name."
        )
        raise ConfigError(message) from error
