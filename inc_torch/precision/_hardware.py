"""Whether the hardware computes in bfloat16 by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

import torch

__all__ = ["has_bfloat16", "precision_for"]

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


def precision_for(device: torch.device | str, wanted: Sequence[str]) -> tuple[str | None, str]:
    """Choose the precision that a device is fast in.

    Args:
        device: Where the model is.
        wanted: Of ``"bf16"`` and ``"fp16"``, the preferred one first.

    Returns:
        The word, or None if everything has to stay in float32; and a sentence to warn with, empty if there is no need.

    Example:
        >>> precision_for("cpu", ["fp16"])[0] is None, precision_for("cpu", [])
        (True, (None, 'No precision is left to convert to: all of precisions are in excluded_precisions.'))
    """
    kind = torch.device(device).type
    if not wanted:
        return None, "No precision is left to convert to: all of precisions are in excluded_precisions."
    for word in wanted:
        if (word == "bf16" and has_bfloat16(device)) or (word == "fp16" and kind == "cuda"):
            return word, ""
    if "bf16" in wanted:
        times = " about 3 times (with AVX512) to 7 times (with AVX2)" if kind == "cpu" else ""
        return "bf16", (
            f"The {kind} of this machine has no instructions for bfloat16: the model computes in it all the same, but "
            f"is expected to be{times} slower than in float32. It takes half the memory. Run it on a CPU with "
            f"AVX512-BF16 or AMX, or on a newer GPU; {FORCE}=1 in the environment silences this."
        )
    return None, (
        f"float16 gains nothing on the {kind}: the model stays in float32. Ask for bf16, or move the model to CUDA."
    )
