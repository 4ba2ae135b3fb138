"""Which of INC's names there are in this package: looked up in the package itself, so that no list can be outdated."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from typing import Final

from inc_torch.core.errors import did_you_mean

__all__ = ["Missing", "found", "missing"]

Missing = tuple[str, str]
"""Why a name is not there, and what to do."""

_PAGE: Final = "See docs/migration.md."

_ELSEWHERE: Final = {
    "__version__": ("inc_torch counts its own versions", "Look at what depends on the version, and leave it out."),
    "version": ("inc_torch counts its own versions", "Look at what depends on the version, and leave it out."),
    "torch": (
        "it is the 3.X API, which is not replaced here",
        "Keep it with neural_compressor 3.X, or use quantization.fit or prepare_compression of inc_torch.",
    ),
    "common": ("it is the 3.X API, which is not replaced here", "Keep it with neural_compressor 3.X."),
    "tensorflow": ("inc_torch is for PyTorch alone", "Keep this part with an older neural_compressor."),
    "onnxrt": ("inc_torch is for PyTorch alone", "Export an int8 model with manager.export instead."),
    "jax": ("inc_torch is for PyTorch alone", "Keep this part with neural_compressor 3.X."),
    "adaptor": ("it was INC's inside", "Use the configs and quantization.fit instead. " + _PAGE),
    "strategy": ("it was INC's inside", "Write a strategy with inc_torch.tuning.STRATEGIES instead. " + _PAGE),
    "pruner": ("it was INC's inside", "Register a criterion or pattern with inc_torch.pruners instead. " + _PAGE),
    "ux": ("the graphical interface of INC is not replaced", "Leave it out; `inc-torch --help` lists commands."),
    "contrib": ("strategies of other services are not replaced", "Use 'bayesian' or 'tpe' of TuningCriterion."),
    "profiling": ("it was INC's inside", "Use `inc-torch benchmark --diagnosis`."),
}
"""What is known of parts of INC that are not here, by the first word of their path, or of the name at the top."""


_ANYTHING: Final = object()
"""An attribute of an object that is not there yet."""


@functools.cache
def found(path: str) -> object | None:
    """Import what ``path`` names below ``inc_torch``; None if there is no such thing in a module.

    What objects have as attributes is not looked at: they may have them by the time that they are used.

    Example:
        >>> found("training.prepare_compression").__name__, found("quantization.guess")
        ('prepare_compression', None)
    """
    owner: object = importlib.import_module("inc_torch")
    name = "inc_torch"
    for part in path.split("."):
        name = f"{name}.{part}"
        if hasattr(owner, part):
            owner = getattr(owner, part)
        elif not inspect.ismodule(owner):
            return _ANYTHING
        elif importlib.util.find_spec(name) is not None:
            owner = importlib.import_module(name)
        else:
            return None
    return owner


def missing(path: str) -> Missing | None:
    """Say why inc_torch has nothing at ``path``, and what to do; None if it has, and means the same.

    Example:
        >>> missing("quantization.fit")
        >>> missing("quantization.fitt")
        ("inc_torch.quantization has no 'fitt'", "Did you mean 'fit'?")
    """
    first = path.partition(".")[0]
    if path == "__version__" or (first in _ELSEWHERE and found(path) is None):
        return _ELSEWHERE[first]
    if found(path) is not None:
        return None
    parts = path.split(".")
    depth = next(depth for depth in range(len(parts)) if found(".".join(parts[: depth + 1])) is None)
    owner = ".".join(["inc_torch", *parts[:depth]])
    known = [name for name in dir(importlib.import_module(owner)) if not name.startswith("_")]
    hint = did_you_mean(parts[depth], known).strip()
    if depth and inspect.ismodule(found(parts[depth])):
        hint = f"Take it from inc_torch.{parts[depth]}."
    return (
        f"{owner} has no {parts[depth]!r}",
        hint or f"Leave it out, or say what it is needed for in an issue. {_PAGE}",
    )
