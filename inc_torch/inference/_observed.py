"""Whether somebody wants to see the operators of torch, which compiled kernels are not."""

from __future__ import annotations

import torch

__all__ = ["is_observed", "is_wrapped"]


def is_observed() -> bool:
    """Whether a tracer is at work, or a mode that sees operators, such as one that counts or fakes them."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for another one in a transform of `torch.func`, and has no memory of its own."""
    return torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
