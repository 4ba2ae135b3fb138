"""Finding one tensor in what a module returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from inc_torch.core.errors import ModelError
from inc_torch.distillers._outputs import described, parts_of

__all__ = ["Selection", "selected"]

Selection = str | int | Callable[[Any], Any] | None
"""Which part of an output is meant, see `selected`."""


def selected(output: object, selection: Selection, layer: str) -> torch.Tensor:
    """Return the tensor in ``output`` that ``selection`` means.

    Args:
        output: What the module returned.
        selection: A key or an index; several joined by dots, ``"hidden_states.3"``; a function that takes the output
            and returns a tensor; None for the output itself, or the only tensor in it.
        layer: The module's name, for messages.

    Raises:
        ModelError: There is no such part, or it is no tensor.

    Example:
        >>> selected({"hidden_states": (torch.zeros(1), torch.ones(1))}, "hidden_states.1", "encoder")
        tensor([1.])
    """
    found = _found(output, selection)
    if isinstance(found, torch.Tensor):
        return found
    if selection is None:
        tensors = [value for value in parts_of(output) if isinstance(value, torch.Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        way_out = f"Say which of them is meant: [{layer!r}, 0], [{layer!r}, 'key'] or [{layer!r}, function]."
    else:
        way_out = "Name a part that is there, or give a function that takes the output."
    asked = "a tensor" if selection is None else f"a tensor at {_shown(selection)}"
    message = f"The layer {layer!r} returned an output of {described(output)}: expected {asked} in it. {way_out}"
    raise ModelError(message)


def _found(output: object, selection: Selection) -> object:
    if selection is None:
        return output
    if callable(selection):
        return selection(output)
    if isinstance(selection, str) and "." in selection and not _has(output, selection):
        for part in selection.split("."):
            output = _found(output, part)
        return output
    if isinstance(output, Mapping) and selection in output:
        return output[selection]
    index = _index(selection)
    if index is not None and isinstance(output, Mapping | tuple | list):
        values = parts_of(output)
        return values[index] if -len(values) <= index < len(values) else None
    return getattr(output, selection, None) if isinstance(selection, str) and selection.isidentifier() else None


def _has(output: object, key: str) -> bool:
    return isinstance(output, Mapping) and key in output


def _index(selection: str | int) -> int | None:
    if isinstance(selection, int):
        return selection
    return int(selection) if selection.removeprefix("-").isdecimal() else None


def _shown(selection: Selection) -> str:
    return getattr(selection, "__name__", "the function") if callable(selection) else repr(selection)
