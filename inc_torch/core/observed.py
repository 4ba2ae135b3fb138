"""Who looks on while a model runs: tracers, one at a time."""

from __future__ import annotations

import threading
from typing import Final

import torch

__all__ = ["TRACING", "is_observed"]

TRACING: Final = threading.RLock()
"""Held while something is traced: torch.fx puts its own in place of the calls of all modules, in all threads, and back
again. Two at once would each take what the other has put there for torch's own."""


def is_observed() -> bool:
    """Whether a tracer is at work, a transform of `torch.func`, or a mode that sees operators to count or fake them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
