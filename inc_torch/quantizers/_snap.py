"""Modules that move a tensor to a grid, for the tensors that stay int8 codes between layers.

A tensor that several layers, residual sums or poolings read is rounded once, where it is made; the int8 modules that
read it share the grid, and find its values on it already. Nothing else in a model rounds what is not an input of an
int8 module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, final

import torch
from torch import nn

from inc_torch.core.sharding import exchange_class
from inc_torch.quantizers._codes import InputGrid, snap
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._int8_module import output_dtype
from inc_torch.quantizers._spec import QuantScheme

if TYPE_CHECKING:
    from inc_torch.quantizers._arithmetic import Arithmetic

__all__ = ["FakeQuantSnap", "Int8Snap"]


@final
class FakeQuantSnap(FakeQuantModule, nn.Identity):
    """Rounds a tensor to the grid that its readers share; `torch.nn.Identity` while fake-quant is off."""

    kind = "snap"
    has_weight = False
    has_input_grid = False

    @property
    def is_static(self) -> bool:
        """Always."""
        return True

    @property
    def weight_device(self) -> torch.device:
        """The CPU, as there is no weight."""
        return torch.device("cpu")

    @classmethod
    def made(cls, scheme: QuantScheme) -> FakeQuantSnap:
        """A new one, with fake-quant off."""
        module: Any = nn.Identity()
        cls.adopt(module, scheme)
        own: FakeQuantSnap = module
        return own

    def restore(self) -> None:
        """Become the identity."""
        self.release()
        exchange_class(self, nn.Identity)

    def convert_(self) -> None:
        """Become an `Int8Snap`; needs a range."""
        grid = self.grid
        self.release()
        exchange_class(self, Int8Snap)
        own: Any = self
        own.set_grid(InputGrid(1.0, 0, QuantScheme().top) if grid is None else grid)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Return ``round(x)``."""
        return self._rounded_input(input) if self._fake_quant else input


@final
class Int8Snap(nn.Module):
    """Moves every value of a tensor to a grid: what decoding its codes gives.

    Attributes:
        scale: Distance of neighbours, float32 scalar.
        zero_point: Code of the value 0, int32 scalar.
        top: Greatest code; the least is 0.

    Example:
        >>> module = Int8Snap()
        >>> module.set_grid(InputGrid(scale=0.5, zero_point=1, top=255))
        >>> module(torch.tensor([0.3, -9.0]))
        tensor([ 0.5000, -0.5000])
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    top: int
    _grid: tuple[torch.Tensor, InputGrid] | None
    _arithmetic: Arithmetic | None = None

    def compute_with(self, arithmetic: Arithmetic | None) -> None:
        """Round with ``arithmetic``; None rounds as ever."""
        self.__dict__["_arithmetic"] = arithmetic
        if arithmetic is not None:
            _ = self.grid  # read now, as who traces the module cannot

    def __init__(self) -> None:
        super().__init__()
        self.set_grid(InputGrid(1.0, 0, QuantScheme().top))

    def set_grid(self, grid: InputGrid, device: torch.device | None = None) -> None:
        """Round to ``grid`` from now on."""
        self.register_buffer("scale", torch.tensor(grid.scale, device=device))
        self.register_buffer("zero_point", torch.tensor(grid.zero_point, dtype=torch.int32, device=device))
        self.top = grid.top
        self._grid = None

    @property
    def grid(self) -> InputGrid:
        """What values are moved to."""
        is_stale = self._grid is not None and self._grid[0] is not self.scale and self._arithmetic is None
        if self._grid is None or is_stale:
            if self.scale.is_meta:
                return InputGrid(1.0, 0, self.top)
            self._grid = self.scale, InputGrid(self.scale.item(), int(self.zero_point.item()), self.top)
        return self._grid[1]

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Return the nearest values of the grid, in the dtype of the input, or that of autocast."""
        if self._arithmetic is not None:
            return self._arithmetic.rounded(input, self.grid).to(output_dtype(input))
        return snap(input, self.grid).to(output_dtype(input))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move, but keep dtypes."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        self._grid = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  seven arguments of torch
        self._grid = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_grid": None, "_arithmetic": None}

    def extra_repr(self) -> str:
        """The grid."""
        return f"scale={self.grid.scale:g}, zero_point={self.grid.zero_point}, top={self.top}"
