"""The words that steps are described in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

__all__ = ["Activation", "Clamp", "Grid"]


@dataclass(frozen=True, slots=True)
class Grid:
    """The meaning of uint8 codes: ``(code - zero_point) * scale``.

    Attributes:
        scale: Distance of neighbours, above 0.
        zero_point: Code of the value 0, in [0, 255].

    Raises:
        ValueError: A field is out of its range.

    Example:
        >>> Grid(0.5, 128)
        Grid(scale=0.5, zero_point=128)
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            message = f"inc_torch.kernels.Grid.scale={self.scale!r}: expected a finite number above 0."
            raise ValueError(message)
        if not 0 <= self.zero_point <= 255:  # noqa: PLR2004  what the message says
            message = f"inc_torch.kernels.Grid.zero_point={self.zero_point!r}: expected an integer in [0, 255]."
            raise ValueError(message)


class Activation(Enum):
    """A function of each element."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SILU = "silu"
    HARDSWISH = "hardswish"
    HARDSIGMOID = "hardsigmoid"
    TANH = "tanh"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class Clamp:
    """``min(max(x, low), high)``: hardtanh, and any other pair of limits.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            message = f"inc_torch.kernels.Clamp: expected low < high, got {self.low!r} and {self.high!r}."
            raise ValueError(message)


_CLAMPS = {Activation.RELU: Clamp(low=0.0), Activation.RELU6: Clamp(0.0, 6.0)}
CLAMP = 1
_NUMBERS = {
    Activation.NONE: 0,
    Activation.GELU: 2,
    Activation.GELU_TANH: 3,
    Activation.SILU: 4,
    Activation.HARDSWISH: 5,
    Activation.HARDSIGMOID: 6,
    Activation.TANH: 7,
    Activation.SIGMOID: 8,
}


def in_numbers(activation: Activation | Clamp) -> tuple[int, float, float]:
    """Return the number of an activation in the kernels and the limits of a clamp.

    Example:
        >>> in_numbers(Activation.RELU)
        (1, 0.0, inf)
    """
    if isinstance(activation, Activation) and activation not in _CLAMPS:
        return _NUMBERS[activation], -math.inf, math.inf
    clamp = activation if isinstance(activation, Clamp) else _CLAMPS[activation]
    return CLAMP, clamp.low, clamp.high
