"""What linear layers and convolutions on codes share: the end of the computation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from inc_torch import kernels
from inc_torch.inference._codes import kernel_grid
from inc_torch.inference._graph import target_of
from inc_torch.inference._operations import Operation, activated
from inc_torch.inference._weights import Int8Weights
from inc_torch.quantizers import InputGrid, QuantScheme, decode, encode

__all__ = ["ProductOnCodes", "has_residual", "product_of"]


@dataclass(frozen=True, eq=False)
class ProductOnCodes(Operation):
    """``activation(product(x, W) + b + residual)`` of codes x, as float32 or as codes.

    Inputs are the codes, the grid that they were given by `FindRange` if it is not fixed, and the residual if there is
    one.

    Attributes:
        weights: W and b; they know the grid of x.
        activation: A name of `ACTIVATIONS`.
        residual_grid: Of the residual, if it is codes.
        output_grid: Of what comes out; None is a float.
        output_dtype: Of a float that comes out: float32, or bfloat16.
    """

    weights: Int8Weights
    activation: str = "none"
    residual_grid: InputGrid | None = None
    output_grid: InputGrid | None = None
    output_dtype: torch.dtype = torch.float32

    @property
    def input_roles(self) -> tuple[str, ...]:
        return ("input", *self.range_roles, "residual")

    @property
    def range_roles(self) -> tuple[str, ...]:
        """The role of the grid of x among the inputs, if it is one of them."""
        return ("dynamic",) if self.weights.grid is None else ()

    @property
    def _written_dtype(self) -> torch.dtype:
        return self.output_dtype if self.output_grid is None else torch.uint8

    def compute(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codes, *rest = inputs
        values = self._product(codes, self._grid(rest))
        for residual in rest[len(self.range_roles) :]:
            values = values.add_(residual if self.residual_grid is None else decode(residual, self.residual_grid))
        values = activated(values, self.activation)
        if self.output_grid is None:
            return (values.to(self.output_dtype),)
        return (encode(values, self.output_grid, self.output_grid.shift),)

    def _grid(self, rest: Sequence[torch.Tensor]) -> InputGrid:
        """The grid of x, given the inputs after it."""
        if self.weights.grid is not None:
            return self.weights.grid
        scale, zero_point = rest[0].tolist()
        return InputGrid(scale, int(zero_point), QuantScheme().top)

    @abstractmethod
    def _product(self, codes: torch.Tensor, grid: InputGrid) -> torch.Tensor:
        """The product and the bias, float32, by oneDNN."""

    def _kernel_options(self) -> dict[str, Any]:
        return {
            "activation": kernels.Activation[self.activation.upper()],
            "output_grid": None if self.output_grid is None else kernel_grid(self.output_grid),
            "residual_grid": None if self.residual_grid is None else kernel_grid(self.residual_grid),
        }


def product_of(node: object) -> ProductOnCodes | None:
    """The product that a node computes, if it does."""
    target = target_of(node)
    return target if isinstance(target, ProductOnCodes) else None


def has_residual(node: Node) -> bool:
    """Whether a node that computes a product adds a residual to it."""
    product = product_of(node)
    return product is not None and len(node.args) == len(product.input_roles)
