"""The compiled library: loaded at first use, once a process."""

from __future__ import annotations

import ctypes
import functools
import os

from inc_torch.kernels._arguments import STRUCTURES
from inc_torch.kernels._build import SWITCH, KernelsUnavailableError, build, missing_features

__all__ = ["available", "library", "reason", "require", "use_tiles", "uses_tiles"]

OFF, ON, NO_TILES = "0", "1", "avx512"
"""What the switch may say."""


def _switch() -> str:
    return os.environ.get(SWITCH, "").strip() or ON


def _switched_off() -> str | None:
    chosen = _switch()
    if chosen in (ON, NO_TILES):
        return None
    if chosen == OFF:
        return f"they are switched off by {SWITCH}=0"
    return f"{SWITCH} is {chosen!r}, expected {OFF}, {ON} or {NO_TILES}"


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
    loaded.inc_uses_tiles.restype = ctypes.c_int64
    loaded.inc_size_of_arguments.argtypes = (ctypes.c_int64,)
    loaded.inc_size_of_arguments.restype = ctypes.c_int64
    for operation, structure in STRUCTURES.items():
        if loaded.inc_size_of_arguments(operation) != ctypes.sizeof(structure):
            return f"the arguments of {operation.name} have another size in C++ than in Python"
    loaded.inc_use_tiles(_switch() != NO_TILES)
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


def use_tiles(wanted: bool) -> bool:
    """Let products run on tiles of AMX from now on, in the whole process, or not; return whether they do.

    Raises:
        KernelsUnavailableError: There is no library.
    """
    return bool(library().inc_use_tiles(wanted))


def uses_tiles() -> bool:
    """Whether products run on tiles of AMX, which Intel's server processors have since 2023.

    Example:
        >>> from inc_torch import kernels
        >>> kernels.available() or not kernels.uses_tiles()
        True
    """
    return available() and bool(library().inc_uses_tiles())
