"""Casting what modules take, give and hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["FLOATS", "cast", "cast_parameters_", "keeping_dtypes"]

FLOATS: Final = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""What is cast; other floating types hold codes."""


def cast(value: Any, dtype: torch.dtype, *, saturate: bool = False) -> Any:  # noqa: ANN401, PLR0911  anything
    """Cast the floating tensors in nested tuples, lists, dicts and dataclasses; everything else stays as it is.

    Args:
        value: What a module was called with, or returned.
        dtype: What floating tensors are to be.
        saturate: Values below the least of ``dtype`` become the least, not infinity: additive masks of transformers
            hold the least value of float32, and a row of infinities has no softmax.

    Example:
        >>> cast({"mask": torch.tensor([torch.finfo(torch.float32).min])}, torch.bfloat16)["mask"].item()
        -inf
        >>> cast((torch.tensor([torch.finfo(torch.float32).min]),), torch.bfloat16, saturate=True)[0].item() > -1e39
        True
    """
    if isinstance(value, torch.Tensor):
        if value.dtype is dtype or value.dtype not in FLOATS:
            return value
        narrower = saturate and value.dtype is not torch.float16
        return value.clamp(min=torch.finfo(dtype).min).to(dtype) if narrower else value.to(dtype)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, PackedSequence):
        return value.to(dtype)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _cast_dataclass(value, dtype, saturate)
    if isinstance(value, dict):
        items = {key: cast(item, dtype, saturate=saturate) for key, item in value.items()}
        return items if type(value) is dict else _like(value, items)
    if isinstance(value, (tuple, list)):
        entries = [cast(item, dtype, saturate=saturate) for item in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def _cast_dataclass(value: Any, dtype: torch.dtype, saturate: bool) -> Any:  # noqa: ANN401  any dataclass
    """A copy of an output of transformers, or of another dataclass; one with nothing to cast stays the same object."""
    changed = {}
    for field in dataclasses.fields(value):
        if field.init and (old := getattr(value, field.name, None)) is not None:
            new = cast(old, dtype, saturate=saturate)
            if new is not old:
                changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value


def _like(value: dict[Any, Any], items: dict[Any, Any]) -> Any:  # noqa: ANN401  any kind of dict
    copied = value.copy()
    copied.update(items)
    return copied


def cast_parameters_(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the module's own floating Parameters, in place: they stay the same objects, so tied ones stay tied.

    Buffers stay as they are, for what they mean is not known: frequencies and positions must not lose digits.
    """
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    wanted = {id(tensor) for parameter in own for tensor in (parameter, parameter.grad)}

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if id(tensor) in wanted and tensor.dtype in FLOATS else tensor

    module._apply(change, recurse=False)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def keeping_dtypes(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What ``fn`` does to a tensor, but for the dtype."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        result = fn(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)

    return moved
