"""The compiled library: loaded at first use, once a process."""

from __future__ import annotations

import ctypes
import functools
import os

from inc_torch.kernels._arguments import STRUCTURES
from inc_torch.kernels._build import SWITCH, KernelsUnavailableError, build, missing_features

__all__ = ["available", "library", "reason", "require"]


def _switched_off() -> str | None:
    return f"they are switched off by {SWITCH}=0" if os.environ.get(SWITCH, "").strip() == "0" else None


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    missing = missing_features()
    if missing is not None:
        return missing
    try:
        loaded = ctypes.CDLL(str(build()))
    except KernelsUnavailableError as error:
        return str(error)
    except OSError as error:
        return f"the compiled kernels could not be loaded: {error}"
    loaded.inc_run.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    loaded.inc_run.restype = None
    loaded.inc_use_tiles.argtypes = (ctypes.c_int64,)
    loaded.inc_use_tiles.restype = ctypes.c_int64
    loaded.inc_size_of_arguments.argtypes = (ctypes.c_int64,)
    loaded.inc_size_of_arguments.restype = ctypes.c_int64
    for operation, structure in STRUCTURES.items():
        if loaded.inc_size_of_arguments(operation) != ctypes.sizeof(structure):
            return f"the arguments of {operation.name} have another size in C++ than in Python"
    return loaded


def reason() -> str | None:
    """Say why the kernels cannot be used, None if they can; compiles them if that was not done yet."""
    off = _switched_off()
    if off is not None:
        return off
    loaded = _loaded()
    return loaded if isinstance(loaded, str) else None


def available() -> bool:
    """Whether the kernels can be used; compiles them if that was not done yet.

    Example:
        >>> from inc_torch import kernels
        >>> kernels.available() == (kernels.reason() is None)
        True
    """
    return reason() is None


def require() -> None:
    """Refuse with the reason if the kernels cannot be used.

    Raises:
        KernelsUnavailableError: The reason, and where there is one, the way out.
    """
    why = reason()
    if why is not None:
        message = f"inc_torch.kernels cannot be used: {why}."
        raise KernelsUnavailableError(message)


def library() -> ctypes.CDLL:
    """Return the library.

    Raises:
        KernelsUnavailableError: There is none.
    """
    require()
    loaded = _loaded()
    if isinstance(loaded, str):
        raise KernelsUnavailableError(loaded)
    return loaded
