"""Instances as processes: forked, bound, started together, and gone afterwards.

Why they are forked. A module may be of a class that the user's script defines, which another process could only have
by running that script a second time, and that must not happen: it may train for hours. A forked process has the module,
the loader and every function as they are; nothing is pickled, and weights are shared until somebody writes to them.

A forked process has none of its parent's threads, and the OpenMP of GCC waits for ever for threads that are gone. Each
thread has a pool of its own there, so the work is done by a new thread, whose pool begins empty. That holds for
oneDNN, MKL and the kernels of this package, which all run on that pool. CUDA cannot be used in a forked process, and
systems other than Linux do not fork safely: there the model is measured in the process itself (`run_here`).

Processes tell what they found as JSON through a pipe. They ignore Ctrl-C, which the parent gets too and answers by
killing them; and the kernel kills them if the parent dies.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import IO, TYPE_CHECKING, Any, Final, final

import torch

from inc_torch.benchmark._child import Rendezvous, run_in_child, story_of
from inc_torch.benchmark._cores import Placement

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess  # not there on Windows

__all__ = ["Outcome", "run_forked", "run_here"]

Task = Callable[[Placement, Rendezvous], dict[str, Any]]
"""What an instance does: plain values of what it found. It calls the rendezvous when it is warmed up."""

_GRACE: Final = 10.0
"""Seconds that a process has to end after it has told its result."""
_PATIENCE: Final = 1.0
"""Seconds after which it is looked whether processes that say nothing are still there."""


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an instance.

    Attributes:
        placement: Where it ran.
        found: What its task returned; None if it failed.
        failure: What went wrong in a line, then the trace.
    """

    placement: Placement
    found: dict[str, Any] | None
    failure: str | None = None


def run_here(placement: Placement, task: Task) -> Outcome:
    """Do the task in this process, whose threads are as many as before when it is done."""
    before = torch.get_num_threads()
    try:
        if placement.threads is not None:
            torch.set_num_threads(placement.threads)
        return Outcome(placement, task(placement, lambda: None) | {"threads": torch.get_num_threads()})
    except Exception as error:  # noqa: BLE001  a failure is part of the result, as it is of a process
        return Outcome(placement, None, story_of(error))
    finally:
        torch.set_num_threads(before)


def run_forked(placements: Sequence[Placement], task: Task) -> list[Outcome]:
    """Do the task in a process for each placement, all at the same time.

    One that fails does not end the others. When this returns or raises, by Ctrl-C too, no process is left.
    """
    instances: list[_Instance] = []
    try:
        for placement in placements:
            _Instance.start(placement, task, instances)
        _attend(instances)
        return [instance.outcome() for instance in instances]
    finally:
        for instance in instances:
            instance.end()


@final
@dataclass(slots=True)
class _Instance:
    """A process, and what it has told so far."""

    placement: Placement
    process: ForkProcess
    pipe: Connection
    crash_log: IO[bytes]
    is_ready: bool = False
    found: dict[str, Any] | None = None
    failure: str | None = None
    is_open: bool = field(default=True)

    @classmethod
    def start(cls, placement: Placement, task: Task, others: list[_Instance]) -> None:
        """Start a process, and put it among the others, so that it is ended with them whatever happens."""
        context = multiprocessing.get_context("fork")
        own, given = context.Pipe()
        crash_log = tempfile.TemporaryFile()  # noqa: SIM115  closed by end()
        inherited = [own, *(other.pipe for other in others)]
        process = context.Process(
            target=run_in_child,
            args=(placement, task, given, inherited, crash_log),
            name=f"inc_torch-{placement.index}",
        )
        others.append(cls(placement, process, own, crash_log))
        # A Ctrl-C comes when the process is known. Python warns of every fork beside threads, for locks that they may
        # hold; not `core.user_warning.ignored` here, whose own lock would be held in the new process for ever.
        with _interrupts_later(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        given.close()

    def listen(self) -> None:
        """Take in what the process has sent, or that it is gone."""
        try:
            told: dict[str, Any] = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.is_open = False
            return
        self.is_ready = True
        self.found = told.get("found")
        self.failure = told.get("failure")
        self.is_open = self.found is None and self.failure is None

    def outcome(self) -> Outcome:
        """What became of it; a process that died without a word is told of by how it died."""
        if self.found is None and self.failure is None:
            self.process.join(_GRACE)
            self.failure = _obituary(self.process.exitcode, self.crash_log)
        return Outcome(self.placement, self.found, self.failure)

    def end(self) -> None:
        """Leave nothing of it."""
        with suppress(OSError):
            self.pipe.close()
        if self.process.pid is None:  # it never began
            self.crash_log.close()
            return
        if self.found is not None or self.failure is not None:
            self.process.join(_GRACE)
        if self.process.is_alive():
            # It leads a group of its own, with the workers of a loader that it may have started.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
        self.process.join()
        self.process.close()
        self.crash_log.close()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _attend(instances: Sequence[_Instance]) -> None:
    """Let all begin together once each is warmed up or gone, and wait until each has told its result."""
    have_begun = False
    while waiting := [instance for instance in instances if instance.is_open]:
        if not have_begun and all(instance.is_ready for instance in waiting):
            have_begun = True
            for instance in waiting:
                with suppress(OSError):
                    instance.pipe.send_bytes(b"go")
        ready = wait([instance.pipe for instance in waiting], _PATIENCE)
        for instance in waiting:
            if instance.pipe in ready:
                instance.listen()
            elif not instance.process.is_alive():  # and a fork elsewhere holds its end of the pipe
                instance.is_open = instance.pipe.poll()


def _obituary(exit_code: int | None, crash_log: IO[bytes]) -> str:
    crash_log.seek(0)
    trace = crash_log.read().decode(errors="replace").strip()
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"The process was ended by {name}{hint}.\n{trace}".strip()
    return f"The process ended with exit code {exit_code} before it told a result.\n{trace}".strip()
