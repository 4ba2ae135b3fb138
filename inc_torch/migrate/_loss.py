"""The loss that ``on_after_compute_loss`` returns, which is the one to go backward from."""

from __future__ import annotations

import libcst as cst

from inc_torch.migrate._handles import Handles, HookCall
from inc_torch.migrate._source import Source, walk

__all__ = ["use_returned_loss"]

_LOSS = 2
"""Which argument the loss is."""


def use_returned_loss(source: Source, handles: Handles) -> None:
    """Assign the loss that a hook returns where it is dropped, and tell where it is kept but goes nowhere."""
    for call in handles.calls:
        if call.hook != "on_after_compute_loss" or not isinstance(call.node, cst.Call):
            continue
        statement = source.parent(call.node)
        loss = _given_loss(call.node)
        if isinstance(statement, cst.Expr):
            if loss is not None and _goes_on(source, call, loss):
                at = source.begin(call.node)
                source.edits.replace(at, at, f"{loss} = ")
            else:
                _tell(source, call, "the loss that it returns is dropped")
            continue
        target = statement.targets[0].target if isinstance(statement, cst.Assign) else None
        if isinstance(target, cst.Name) and not _is_read(source, call, target):
            _tell(source, call, f"{target.value!r} is not used, so the teacher has no part in the training")


def _tell(source: Source, call: HookCall, why: str) -> None:
    source.tell(
        call.node, why, f"Write loss = {call.receiver}.on_after_compute_loss(...), and loss.backward() after it."
    )


def _given_loss(call: cst.Call) -> str | None:
    for index, argument in enumerate(call.args):
        is_loss = argument.keyword.value == "student_loss" if argument.keyword is not None else index == _LOSS
        if is_loss and isinstance(argument.value, cst.Name):
            return argument.value.value
    return None


def _goes_on(source: Source, call: HookCall, loss: str) -> bool:
    """Whether ``backward`` is called on the name later, as ``loss.backward()`` or ``accelerator.backward(loss)``."""
    function = source.function(call.node)
    return any(
        isinstance(later.func, cst.Attribute)
        and later.func.attr.value == "backward"
        and source.function(later) is function
        and source.begin(later) > source.end(call.node)
        and any(isinstance(node, cst.Name) and node.value == loss for node in walk(later))
        for later in source.all(cst.Call)
    )


def _is_read(source: Source, call: HookCall, target: cst.Name) -> bool:
    """Whether the name stands anywhere else in the function after the call."""
    function = source.function(call.node)
    return any(
        name.value == target.value
        and name is not target
        and source.function(name) is function
        and source.begin(name) > source.end(call.node)
        for name in source.all(cst.Name)
    )
