"""What a model takes of memory while it runs.

A process that was forked shares the memory of its parent, and whatever else the parent holds counts as its own. So what
is told of a model is the size of its tensors, and by how much running it makes the process grow:

- what stays, such as packed weights, is what anonymous memory has grown by once all iterations are through; pages of
  libraries that were read for the first time would count otherwise;
- what comes and goes, such as activations, is how far the peak of one more forward is above that.

The allocator of the C library keeps memory that was freed, now more, now less. Before it is looked it has to give that
back, and for the last forward it has to take large blocks from the system and return them at once. By then nothing is
timed any more.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from torch import nn

__all__ = ["MemoryWatch", "size_of_tensors"]

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"
"""What to write there, see proc(5)."""
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Options of mallopt(3)."""
_LARGE: Final = 2**16
"""Bytes from which a block is taken from the system and returned at once."""
_AT_THE_END: Final = 100_000
"""Bytes of a block that is never taken from the system by itself, and large enough that freeing it joins blocks."""


def size_of_tensors(model: nn.Module) -> int:
    """Bytes of all Parameters and buffers, those that are shared counted once.

    Example:
        >>> size_of_tensors(nn.Linear(3, 2))
        32
    """
    tensors = {tensor.data_ptr() or id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@final
@dataclass(slots=True)
class MemoryWatch:
    """Follows the memory of a model that is run.

    Attributes:
        device: Where the model lies.
        start: Bytes before the first iteration; None where the system does not tell.
    """

    device: torch.device
    start: int | None = None

    def begin(self) -> None:
        """Note where memory is now."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
        else:
            _give_back()
            self.start = _status("RssAnon")

    def growth(self, run_once: Callable[[], object], *, is_own_process: bool) -> int | None:
        """Bytes that running the model added at the peak; None where that is not told.

        Args:
            run_once: One more forward.
            is_own_process: Nobody else lives in this process, so its allocator may be set.
        """
        if self.start is None:
            return None
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.start
        if not is_own_process:
            return None
        _keep_nothing()
        _give_back()
        with suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        kept, level = _status("RssAnon") or 0, _status("VmRSS") or 0
        run_once()
        return max(0, kept - self.start) + max(0, (_status("VmHWM") or 0) - level)


def _keep_nothing() -> None:
    """Let the allocator return the end of this thread's heap, and from now on all that is freed."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.malloc.restype = ctypes.c_void_p
        library.free.argtypes = [ctypes.c_void_p]
        library.mallopt(_TRIM_THRESHOLD, 0)
        library.free(library.malloc(_AT_THE_END))  # it looks at the end of a heap when such a block is freed
        library.mallopt(_MMAP_THRESHOLD, _LARGE)


def _give_back() -> None:
    """Let the allocator return what was freed: growth into it would not be seen."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int | None:
    """Bytes that the kernel tells of this process."""
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
