"""Running models that torch.compile wraps without compiling them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["without_compiling"]


@contextmanager
def without_compiling() -> Iterator[None]:
    """Let everything that `torch.compile` wraps run as it is written, hooks included.

    Hooks that only watch a few batches are not worth a compilation, and not all that they do can be traced.

    Example:
        >>> with without_compiling():
        ...     torch.nn.ReLU()(torch.tensor([-1.0, 1.0]))
        tensor([0., 1.])
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled yet; importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
