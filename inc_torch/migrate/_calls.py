"""Calls as INC's documents have them, which need more than another name."""

from __future__ import annotations

from typing import Final

import libcst as cst

from inc_torch.migrate._handles import Handles
from inc_torch.migrate._source import Source

__all__ = ["adapt_calls"]

_ENDINGS: Final = ("yaml", "yml")


def adapt_calls(source: Source, handles: Handles) -> None:
    """Quote the names of files that are written as code, and tell of what is saved nowhere in particular."""
    for call in source.all(cst.Call):
        path = source.inc_path(call.func) or ""
        if path.startswith(("experimental.", "conf.config.")):
            for argument in call.args:
                _quote_file(source, argument.value)
        if isinstance(call.func, cst.Attribute) and call.func.attr.value == "save" and not call.args:
            handle = handles.of(call.func.value)
            if handle is not None and handle.is_manager:
                why = "INC wrote into a folder of its own, named by the date"
                source.tell(call, why, f"Name a folder: {source.shown(call.func)}('int8').")


def _quote_file(source: Source, value: cst.BaseExpression) -> None:
    """``Quantization(conf.yaml)`` is meant to be ``Quantization("conf.yaml")``, unless there is a ``conf``."""
    if not isinstance(value, cst.Attribute) or value.attr.value not in _ENDINGS:
        return
    if isinstance(value.value, cst.Name) and not source.is_defined(value.value):
        source.rewrite(value, f'"{source.shown(value)}"')
