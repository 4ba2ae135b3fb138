"""What a forked process does: binds itself, works in a new thread, and tells what it found.

See `inc_torch.benchmark._processes` for why a new thread.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Final

import torch

from inc_torch.benchmark._cores import Placement, parse_cpus

__all__ = ["Rendezvous", "run_in_child", "story_of"]

Rendezvous = Callable[[], None]
"""Returns when all instances are ready to begin."""

_SIGNAL_WHEN_PARENT_DIES: Final = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def run_in_child(
    placement: Placement,
    task: Callable[[Placement, Rendezvous], dict[str, Any]],
    pipe: Connection,
    inherited: Sequence[Connection],
    crash_log: IO[bytes],
) -> None:
    """Do ``task``, and send ``{"found": ...}`` or ``{"failure": trace}``.

    Args:
        placement: Where to run.
        task: What to do.
        pipe: To the parent.
        inherited: Ends of pipes that are the parent's: as long as they are open here, it is not seen who is gone.
        crash_log: Where a trace goes if the process is ended by a fault in compiled code.
    """
    _settle(inherited, crash_log)
    if placement.cpus:
        os.sched_setaffinity(0, placement.cpus)  # threads that begin from here on inherit it
    told: list[dict[str, Any]] = []
    # A daemon, so that nothing waits for it if this thread is interrupted.
    worker = threading.Thread(target=_work, args=(placement, task, pipe, told), daemon=True)
    worker.start()
    worker.join()
    with suppress(OSError):  # the parent is gone
        pipe.send_bytes(json.dumps(told[0]).encode())
    pipe.close()


def _settle(inherited: Sequence[Connection], crash_log: IO[bytes]) -> None:
    """Depend on the parent, and on nothing else that it has."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that came before the line above too: it was blocked so far
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SIGNAL_WHEN_PARENT_DIES, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(1)
    for connection in inherited:
        connection.close()
    faulthandler.disable()  # or it would not take signals back that a library has taken from it
    faulthandler.enable(crash_log)


def _work(
    placement: Placement,
    task: Callable[[Placement, Rendezvous], dict[str, Any]],
    pipe: Connection,
    told: list[dict[str, Any]],
) -> None:
    def rendezvous() -> None:
        pipe.send_bytes(b"{}")
        pipe.recv_bytes()

    try:
        if placement.threads is not None:
            torch.set_num_threads(placement.threads)
        found = task(placement, rendezvous)
        told.append({"found": found | {"cpus": _bound_to(), "threads": torch.get_num_threads()}})
    except BaseException as error:  # noqa: BLE001  SystemExit of the user's function too is told
        told.append({"failure": story_of(error)})
    sys.stdout.flush()
    sys.stderr.flush()


def story_of(error: BaseException) -> str:
    """What went wrong in a line, then the trace.

    Example:
        >>> print(story_of(ValueError("no")))
        ValueError: no
        ValueError: no
        <BLANKLINE>
    """
    headline = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{headline}\n{''.join(traceback.format_exception(error))}"


def _bound_to() -> list[int]:
    """The hardware threads that any thread of this process may run on, as the kernel says it."""
    cpus: set[int] = set()
    for status in Path("/proc/self/task").glob("*/status"):
        with suppress(OSError):
            for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("Cpus_allowed_list:"):
                    cpus.update(parse_cpus(line.partition(":")[2]))
    return sorted(cpus)
