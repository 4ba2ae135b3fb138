"""The weights of int8 modules, as fused operations use them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import torch

from inc_torch import kernels
from inc_torch.quantizers import InputGrid, Int8Conv2d, Int8DynamicLinear, Int8Linear, named_scheme

__all__ = ["Int8Weights"]


@final
class Int8Weights:
    """Weights of modules that read the same codes, one below the other.

    Attributes:
        modules: Whose weights they are.
        grid: Of the codes that go in; None if each input has its own.
        scale: float32 [out].
        bias: float32 [out], or None.
    """

    def __init__(self, modules: Sequence[Int8Linear | Int8DynamicLinear | Int8Conv2d]) -> None:
        self.modules = tuple(modules)
        self.grid = input_grid_of(modules[0])
        self.scale = torch.cat([module.weight_scale for module in modules])
        self.bias = _joined_bias(modules)
        self._prepacked_conv: torch.Tensor | None = None

    @property
    def codes(self) -> torch.Tensor:
        """int8 [out, in] or [out, in / groups, height, width]."""
        first, *others = (module.qweight for module in self.modules)
        return torch.cat([first, *others]) if others else first

    @property
    def window(self) -> tuple[int, ...]:
        """Height and width of the window of convolutions."""
        return tuple(self.modules[0].weight_shape[2:])

    @cached_property
    def packed_linear(self) -> kernels.PackedWeight:
        """The codes in the layout of the compiled kernel of linear layers."""
        return kernels.pack_linear(self.codes)

    @cached_property
    def packed_conv(self) -> kernels.PackedWeight:
        """The codes in the layout of the compiled kernel of convolutions."""
        groups: Any = self.modules[0].groups
        return kernels.pack_conv(self.codes, groups)

    @cached_property
    def prepacked_linear(self) -> torch.Tensor:
        """The codes in the layout of oneDNN."""
        packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(self.codes, None)
        return packed

    def prepacked_conv(
        self,
        grid: InputGrid,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        shape: Sequence[int],
    ) -> torch.Tensor:
        """The codes in the layout of oneDNN, best for inputs of ``shape``, which was that of the first call."""
        if self._prepacked_conv is None:
            self._prepacked_conv = torch.ops.onednn.qconv_prepack(
                self.codes, self.scale, grid.scale, grid.zero_point, stride, padding, dilation, groups, shape
            )
        return self._prepacked_conv

    @cached_property
    def zero_points(self) -> torch.Tensor:
        """Zero points of the weights: all 0."""
        return torch.zeros(len(self.scale), dtype=torch.int32)


def input_grid_of(module: Int8Linear | Int8DynamicLinear | Int8Conv2d) -> InputGrid | None:
    """The grid of a module's inputs, or None if each input has its own."""
    if isinstance(module, Int8DynamicLinear):
        return None
    return InputGrid(module.input_scale.item(), int(module.input_zero_point.item()), named_scheme(module.scheme).top)


def _joined_bias(modules: Sequence[Int8Linear | Int8DynamicLinear | Int8Conv2d]) -> torch.Tensor | None:
    if all(module.bias is None for module in modules):
        return None
    return torch.cat(
        [torch.zeros_like(module.weight_scale) if module.bias is None else module.bias for module in modules]
    )
