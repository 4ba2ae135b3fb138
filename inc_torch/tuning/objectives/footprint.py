"""Peak of memory."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final, final

import torch

from inc_torch.core.errors import ConfigError
from inc_torch.tuning._objectives import OBJECTIVES, Objective

__all__ = ["Footprint"]

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"
"""What to write there, see proc(5)."""


@final
@OBJECTIVES.register("footprint", summary="megabytes of memory at the peak of the evaluation")
class Footprint(Objective):
    """Megabytes (10^6 bytes) at the peak of the evaluation.

    On CUDA devices, if the evaluation allocates anything there: what tensors take at the peak, summed over devices.
    Else what the whole process takes, with Python, libraries and all other models in it; so only the differences
    between trials say something of the model. Where the system cannot forget an earlier peak (any but Linux, and
    Linux without ``/proc/self/clear_refs``), it is the greatest since the process began, and falls for no trial.

    Source: INC 2.6.1: ``footprint``, which counts the objects of Python only, and no tensors.
    """

    representation: ClassVar[str] = "Peak memory (MB)"

    def start(self) -> None:
        """Forget earlier peaks."""
        self._before = sum(map(torch.cuda.memory_allocated, _devices()))
        for device in _devices():
            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)

    def end(self) -> float:
        """Return the megabytes.

        Raises:
            ConfigError: The platform does not tell them.
        """
        on_devices = sum(map(torch.cuda.max_memory_allocated, _devices()))
        return (on_devices if on_devices > self._before else _peak_of_process()) / 1e6


def _devices() -> range:
    """The CUDA devices that this process uses; asking for them starts none."""
    is_used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count() if is_used else 0)


def _peak_of_process() -> int:
    """Bytes of resident memory at the peak."""
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ModuleNotFoundError:
        message = (
            f"The objective 'footprint' cannot be measured on {sys.platform}, which tells no peak of memory: expected "
            "Linux, macOS or a CUDA device. Choose another objective, such as 'modelsize'."
        )
        raise ConfigError(message) from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
