"""Who works on a trial, and whether that process is still there."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from pathlib import Path
from typing import Final

__all__ = ["host", "is_alive", "this_process"]

_BOOT, _SPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
_SEES_PROCESSES: Final = os.name == "posix"
_STATE, _START_TIME = 0, 19
"""Of a process, in its line of /proc, counted after the name in parentheses; see proc(5)."""


def host() -> str:
    """This machine since it was started: a name may come again, and containers number their processes on their own.

    Where other processes cannot be seen each process is a machine of its own.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [_BOOT.read_text().strip(), str(_SPACE.readlink())]
    return " ".join(parts if _SEES_PROCESSES else [*parts, _ALONE])


_ALONE: Final = str(uuid.uuid4())


def this_process() -> str:
    """This process, by number and, where it is known, the time at which it began: the number alone may come again."""
    return _process(os.getpid()) or str(os.getpid())


def is_alive(process: str) -> bool:
    """Whether a process of this host, as it called itself by `this_process`, is still there."""
    return _process(int(process.partition(" ")[0])) == process


def _process(number: int) -> str | None:
    stat = Path(f"/proc/{number}/stat")
    if stat.parent.parent.is_dir():
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            return None if fields[_STATE] in "ZX" else f"{number} since {fields[_START_TIME]}"
        return None
    with contextlib.suppress(PermissionError):  # somebody else's
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return None
    return str(number)
