"""Nodes of a fused graph.

A fused graph is a `torch.fx.Graph` whose nodes call operators of ``aten`` and `Operation` objects. Between operations,
values may be uint8 codes of a grid; the operations that make and read them know it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F

from inc_torch import kernels

__all__ = ["ACTIVATIONS", "Operation", "activated", "as_rows"]


class Operation(ABC):
    """What a node of a fused graph computes: by operators of torch, or by one step of compiled kernels.

    An operation returns one new tensor for each output; it writes to none of its inputs.
    """

    @property
    def __name__(self) -> str:
        """What nodes of a graph are called by."""
        return type(self).__qualname__

    @abstractmethod
    def allocate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Empty outputs for such inputs; only shapes, strides and dtypes of these matter."""

    @abstractmethod
    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, by operators of torch."""

    @property
    def input_roles(self) -> tuple[str, ...]:
        """What the step calls the inputs; the last ones may be missing."""
        return ("input",)

    @property
    def output_roles(self) -> tuple[str, ...]:
        """What the step calls the outputs."""
        return ("output",)

    @abstractmethod
    def step(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> kernels.Step:
        """The step of compiled kernels that writes ``outputs``, which `allocate` laid out."""

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The output, or a tuple of them if there are several."""
        outputs = self._run_kernel(inputs) if kernels.available() else None
        outputs = self.compute(*inputs) if outputs is None else outputs
        return outputs[0] if len(outputs) == 1 else outputs

    def _run_kernel(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
        """The outputs by compiled kernels; None if these do not take such inputs."""
        outputs = self.allocate(*inputs)
        try:
            step = self.step(inputs, outputs)
        except kernels.OperandError:
            return None
        kernels.Program([step]).run()
        return outputs


def _same(values: torch.Tensor) -> torch.Tensor:
    return values


ACTIVATIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "none": _same,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def activated(values: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply the activation of that name."""
    return ACTIVATIONS[activation](values)


def as_rows(values: torch.Tensor) -> torch.Tensor:
    """Show [..., n] as [rows, n]; never a copy, which a step would read instead of the values.

    Raises:
        OperandError: The rows do not lie at one distance.
    """
    try:
        return values.view(values.shape[:-1].numel(), values.shape[-1])
    except RuntimeError:
        message = f"rows of shape {tuple(values.shape)} and strides {values.stride()} do not lie at one distance."
        raise kernels.OperandError(message) from None
