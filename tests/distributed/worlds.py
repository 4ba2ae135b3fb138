"""Several processes on this machine that train together, for tests: gloo on the CPU, one thread each."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from inc_torch.core.errors import IncTorchWarning

_PRELOADED = ["torch.distributed.fsdp", "torch._dynamo", "inc_torch"]
"""Imported once, by the server that processes are forked from: a second each otherwise (FSDP imports the compiler)."""


def run_world(function: Callable[..., Any], size: int, *args: Any, timeout: float = 120.0, **kwargs: Any) -> list[Any]:
    """Call ``function(*args, **kwargs)`` in each of ``size`` processes of one default process group.

    Our own warnings are errors in them, unless ``function`` expects them.

    Args:
        function: Importable by its name.
        size: How many processes.
        args: Anything that can be pickled.
        timeout: Seconds until the world is given up.
        kwargs: As ``args``.

    Returns:
        What it returned, in the order of ranks.

    Raises:
        RuntimeError: It failed somewhere; with the tracebacks of all ranks that failed.
        TimeoutError: It did not end in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_live, args=(rank, size, folder, function, args, kwargs)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, time.monotonic() + timeout)
            is_late = any(process.exitcode is None for process in processes)
        finally:
            for process in processes:
                process.kill()
                process.join()
        failures = [path.read_text() for path in sorted(Path(folder).glob("*.failure"))]
        if is_late and not failures:
            message = f"{function.__qualname__} did not end on {size} ranks within {timeout:.0f} s."
            raise TimeoutError(message)
        if failures or any(process.exitcode for process in processes):
            codes = [process.exitcode for process in processes]
            message = f"{function.__qualname__} failed in a world of {size}, exit codes {codes}.\n" + "\n".join(
                failures
            )
            raise RuntimeError(message)
        return [torch.load(Path(folder) / f"{rank}.result", weights_only=False) for rank in range(size)]


def _wait(processes: list[Any], end: float) -> None:
    """Until all have ended; if one fails, the others get two more seconds to say what they know."""
    has_failed = False
    while time.monotonic() < end and any(process.exitcode is None for process in processes):
        if not has_failed and any(process.exitcode for process in processes):
            has_failed, end = True, min(end, time.monotonic() + 2)
        time.sleep(0.02)


def _live(
    rank: int, size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("error", category=IncTorchWarning)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        torch.save(function(*args, **kwargs), Path(folder) / f"{rank}.result")
        distributed.barrier()
    except BaseException:  # noqa: BLE001  whatever it is, the parent tells it
        (Path(folder) / f"{rank}.failure").write_text(f"--- rank {rank}\n{traceback.format_exc()}")
        raise SystemExit(1) from None
    distributed.destroy_process_group()
