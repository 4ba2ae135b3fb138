"""Whether somebody wants to see the operators of torch, which compiled kernels are not."""

from __future__ import annotations

import torch

__all__ = ["is_observed"]


def is_observed() -> bool:
    """Whether a tracer is at work, a transform of `torch.func`, or a mode that sees operators to count or fake them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
