"""Letting int8 modules say what they compute in operations of somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from inc_torch.quantizers._codes import InputGrid
from inc_torch.quantizers._int8_module import Int8Module
from inc_torch.quantizers._snap import Int8Snap
from inc_torch.quantizers._spec import QuantScheme

__all__ = ["Arithmetic", "computing_with"]


class Arithmetic(Protocol):
    """How tensors are rounded, and how codes become floats."""

    def rounded(self, values: torch.Tensor, grid: InputGrid) -> torch.Tensor:
        """Return ``values`` on the grid, in float32."""
        ...

    def rounded_by_itself(self, values: torch.Tensor, scheme: QuantScheme) -> torch.Tensor:
        """Return ``values`` on the grid that fits them, in float32."""
        ...

    def weight(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return int8 codes times a scale for each index of the first axis, in float32."""
        ...

    def grouped_weight(self, codes: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor) -> torch.Tensor:
        """Return codes ``[out, in]``, less their zero points, times ``scales[:, group_of]``, in float32."""
        ...


@contextmanager
def computing_with(model: nn.Module, arithmetic: Arithmetic) -> Iterator[None]:
    """Let all int8 modules of ``model`` compute in float, with ``arithmetic`` where codes are made or read."""
    modules = [module for module in model.modules() if isinstance(module, Int8Module | Int8Snap)]
    try:
        for module in modules:
            module.compute_with(arithmetic)
        yield
    finally:
        for module in modules:
            module.compute_with(None)
