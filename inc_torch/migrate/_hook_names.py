"""Hooks by the names that they had in the first releases of 1.X."""

from __future__ import annotations

from typing import Final

import libcst as cst

from inc_torch.migrate._handles import OLD_HOOKS, Handles
from inc_torch.migrate._source import Source

__all__ = ["rename_hooks"]

_GONE: Final = "on_post_forward"


def rename_hooks(source: Source, handles: Handles) -> None:
    """Write the present names of hooks where it is known whose they are, and tell of the others."""
    for call in source.all(cst.Call):
        if not isinstance(call.func, cst.Attribute):
            continue
        name, is_known = call.func.attr, handles.of(call.func.value) is not None
        if name.value in OLD_HOOKS and is_known:
            source.rewrite(name, OLD_HOOKS[name.value])
        elif name.value in OLD_HOOKS and handles.all:
            why = f"it is not known what {source.shown(call.func.value)!r} is"
            source.tell(call, why, f"If it is INC's object, the hook is {OLD_HOOKS[name.value]}.")
        elif name.value == _GONE and is_known:
            why = f"{_GONE} was taken out in INC already"
            source.tell(call, why, "Call loss = X.on_after_compute_loss(inputs, outputs, loss) before backward.")
