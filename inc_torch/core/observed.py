"""Who looks on while a model runs: tracers, one at a time, and hooks, until nobody is left who set them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Final

import torch
from torch.utils.hooks import RemovableHandle

__all__ = ["TRACING", "is_observed", "leave_to_others", "remove_leftovers"]

TRACING: Final = threading.RLock()
"""Held while something is traced: torch.fx puts its own in place of the calls of all modules, in all threads, and back
again. Two at once would each take what the other has put there for torch's own."""
_LEFT: list[RemovableHandle] = []
"""Hooks whose owners are gone."""


def leave_to_others(owner: object, handles: Sequence[RemovableHandle]) -> None:
    """Once ``owner`` is gone, let the next `remove_leftovers` remove what ``handles`` then holds.

    Not at once: an owner may go while torch iterates over its hooks.

    Example:
        >>> from torch import nn
        >>> layer, owner = nn.Identity(), nn.Identity()
        >>> leave_to_others(owner, [layer.register_forward_hook(print)])
        >>> del owner
        >>> remove_leftovers()
        >>> len(layer._forward_hooks)
        0
    """
    weakref.finalize(owner, _LEFT.extend, handles).atexit = False


def remove_leftovers() -> None:
    """Remove the hooks of all owners that are gone."""
    while _LEFT:
        _LEFT.pop().remove()


def is_observed() -> bool:
    """Whether a tracer is at work, a transform of `torch.func`, or a mode that sees operators to count or fake them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
