"""In what mode a model is run for a while: to evaluate it, or to watch it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "without_compiling"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode, and every submodule back into the mode that it had.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     [module.training for module in model]
        [False, False]
        >>> [module.training for module in model]
        [True, False]
    """
    modes = [(submodule, submodule.training) for submodule in model.modules()]
    if not any(training for _, training in modes):
        yield
        return
    is_training = model.training
    model.eval()
    try:
        yield
    finally:
        if is_training:
            model.train()  # for modules that do more there than to set a flag
        for submodule, training in modes:
            submodule.training = training


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
