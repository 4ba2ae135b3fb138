"""Models to measure, each with a name to show."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import nn

from inc_torch.model import open_model
from inc_torch.quantizers import Int8Module, WeightOnlyLinear

__all__ = ["Source", "source_of", "told_apart"]


@final
@dataclass(frozen=True, slots=True)
class Source:
    """A model to measure.

    Attributes:
        name: To show.
        model: The model.
    """

    name: str
    model: nn.Module


def source_of(given: object, architecture: nn.Module | None, argument: str) -> Source:
    """Open the model that the user named, see `inc_torch.model.open_model`."""
    model = open_model(given, architecture, owner="benchmark.fit", argument=argument)
    name = Path(given).resolve().name if isinstance(given, str | os.PathLike) else type(model).__name__
    return Source(name, model)


def told_apart(first: Source, second: Source) -> tuple[Source, Source]:
    """The same two, by different names: of two with one name it is added what they compute in.

    Example:
        >>> pair = told_apart(Source("Net", nn.Linear(2, 2)), Source("Net", nn.Linear(2, 2).bfloat16()))
        >>> [source.name for source in pair]
        ['Net (float32)', 'Net (bfloat16)']
    """
    if first.name != second.name:
        return first, second
    kinds = _kind(first.model), _kind(second.model)
    if kinds[0] == kinds[1]:
        return first, replace(second, name=f"{second.name} (compared)")
    return replace(first, name=f"{first.name} ({kinds[0]})"), replace(second, name=f"{second.name} ({kinds[1]})")


def _kind(model: nn.Module) -> str:
    modules = [module for module in model.modules() if isinstance(module, Int8Module)]
    if modules:
        return "weight-only" if all(isinstance(module, WeightOnlyLinear) for module in modules) else "int8"
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
    return str(dtype).removeprefix("torch.")
