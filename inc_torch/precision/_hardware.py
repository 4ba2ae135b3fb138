"""Whether the hardware computes in bfloat16 by itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import torch

__all__ = ["has_bfloat16"]

FORCE: Final = "FORCE_BF16"
"""The environment variable that INC reads too."""

_CPU_PROBES: Final = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
"""Of ``torch.cpu``. They are private, and a release of torch may lack one."""


def has_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether ``device`` has instructions for bfloat16: AVX512-BF16 or AMX on a CPU, what torch says of a GPU.

    Every CPU can compute in bfloat16; without such instructions it is slower than in float32. ``FORCE_BF16=1`` in the
    environment makes the answer True everywhere. Of other devices than CPUs and CUDA GPUs nothing is known: False.

    Args:
        device: Where the model is to run.

    Example:
        >>> has_bfloat16() in (True, False)
        True

    Reference: INC 2.6.1 looks at AVX512-BF16 of the CPU alone, and at ``FORCE_BF16``.
    """
    if os.environ.get(FORCE) == "1":
        return True
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if kind != "cpu":
        return False
    probes: list[Callable[[], bool] | None] = [getattr(torch.cpu, name, None) for name in _CPU_PROBES]
    return any(probe is not None and probe() for probe in probes)
