"""What a model takes of memory while it runs.

A process that was forked shares the memory of its parent, and whatever else the parent holds counts as its own. So what
is told of a model is the size of its tensors, and by how much running it makes the process grow:

- what stays, such as packed weights, is what anonymous memory has grown by after the warm-up;
- what comes and goes, such as activations, is how far the peak of the iterations is above that.

Anonymous memory is looked at, as pages of libraries that are read for the first time would count otherwise.
"""

from __future__ import annotations

import ctypes
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
    """Follows the memory of this process, or of a CUDA device, from the start of a measurement.

    Attributes:
        device: Where the model lies.
        start: Bytes before the first iteration; None where the system does not tell.
        kept: By how much it had grown after the warm-up.
        level: Resident bytes then.
    """

    device: torch.device
    start: int | None = None
    kept: int = 0
    level: int = 0

    def begin(self) -> None:
        """Note where memory is now; freed memory is given back first, as growth into it would not be seen."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
            return
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self.start = _status("RssAnon")

    def warmed_up(self) -> None:
        """Note what the warm-up left, and forget the peak so far."""
        if self.device.type == "cuda" or self.start is None:
            return
        with suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        self.kept = max(0, (_status("RssAnon") or 0) - self.start)
        self.level = _status("VmRSS") or 0

    def growth(self) -> int | None:
        """Bytes that running the model added at the peak."""
        if self.start is None:
            return None
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device)) - self.start
        return self.kept + max(0, (_status("VmHWM") or 0) - self.level)


def _status(name: str) -> int | None:
    """Bytes that the kernel tells of this process."""
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
