"""Warnings that point at the user's line, wherever in the package their cause was noticed; and those of others."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from inc_torch.core.errors import IncTorchWarning

__all__ = ["ignored", "warn_user"]

_NOT_THE_USER = frozenset(
    {
        "inc_torch",
        "torch",
        "contextlib",
        "functools",
        "optuna",
        "transformers",
        "accelerate",
        "trl",
        "peft",
        "lightning",
        "lightning_fabric",
        "pytorch_lightning",
    }
)
"""Packages between the user's line and us: our own, torch's where its optimizer calls our hooks, and the trainers."""


def warn_user(message: str, category: type[IncTorchWarning]) -> None:
    """Warn as if the nearest line of the user's code had done it."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and not _is_of_user(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


_FILTERS = threading.RLock()


@contextmanager
def ignored(category: type[Warning] = Warning, message: str = "") -> Iterator[None]:
    """Ignore warnings of another package for a few lines: one thread at a time, as filters are those of all threads.

    Args:
        category: Class of the warnings.
        message: Regular expression that they begin with.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message, category)
        yield


def _is_of_user(frame: FrameType) -> bool:
    """Whether the user wrote it: code that torch generates belongs to no module."""
    module = frame.f_globals.get("__name__")
    return module is not None and str(module).partition(".")[0] not in _NOT_THE_USER
