"""Processes that are killed, or that the system refuses to write for; all of them forked, so that they cost nothing."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager

ANY_USER = 65534
MOMENTS = ("replace", "rename", "link", "unlink", "mkdir", "rmdir")
"""Calls between which a folder changes: a process may be killed before each."""


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process; 0, 1 where it raised, or the negative number of the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  told by the exit code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(moment: int, work: Callable[[], object]) -> int:
    """Run ``work`` in a process that is killed before the call of that number, from 0, that changes a folder."""

    def dying() -> None:
        calls = iter(range(moment + 1))

        def counted(name: str) -> Callable[..., object]:
            real = getattr(os, name)

            def call(*args: object, **options: object) -> object:
                if next(calls, moment) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return call

        for name in MOMENTS:
            setattr(os, name, counted(name))
        work()

    return in_child(dying)


def killed_in_the_middle_of_a_file(size: int, work: Callable[[], object]) -> int:
    """Run ``work`` in a process that the system kills as it writes the byte after ``size`` of any file."""

    def dying() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work()

    return in_child(dying)


@contextmanager
def no_room(size: int):
    """No file may get longer than ``size`` bytes; the system refuses the write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def nobody():
    """This process may not write what others own, also if it belongs to the superuser."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(ANY_USER)
    try:
        yield
    finally:
        os.seteuid(0)
