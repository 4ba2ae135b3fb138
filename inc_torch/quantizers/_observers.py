"""What an observer is, and where the observers are found."""

from __future__ import annotations

from typing import NamedTuple, Protocol, final

import torch

from inc_torch.core.errors import ModelError
from inc_torch.core.registry import Registry
from inc_torch.quantizers._statistics import TensorStatistics

__all__ = ["OBSERVERS", "Levels", "Observer", "fit_float_grid", "fit_grid", "observe"]

_CHANNELS_AT_ONCE = 64
"""The histograms of so many channels take 4 MiB."""


@final
class Levels(NamedTuple):
    """The codes that a range is divided into.

    Attributes:
        low: Least code.
        high: Greatest code.
        symmetric: Whether the range must lie evenly around 0.

    Example:
        >>> Levels.of(8, signed=True), Levels.of(4, signed=False, symmetric=False)
        (Levels(low=-128, high=127, symmetric=True), Levels(low=0, high=15, symmetric=False))
    """

    low: int
    high: int
    symmetric: bool

    @classmethod
    def of(cls, bits: int, *, signed: bool, symmetric: bool = True) -> Levels:
        """The codes of a signed or unsigned integer with ``bits`` bits."""
        low = -(2 ** (bits - 1)) if signed else 0
        return cls(low, low + 2**bits - 1, symmetric)

    @property
    def zero_point(self) -> int:
        """The code of 0 in a symmetric grid: 0 if codes are signed, 128 of 0..255, and the lower middle of others."""
        if self.low < 0:
            return 0
        return 128 if (self.low, self.high) == (0, 255) else (self.low + self.high) // 2


class Observer(Protocol):
    """Finds the range that is worth resolving, in what was seen of a tensor."""

    def range(self, seen: TensorStatistics, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
        """Return least and greatest value, float64 [channels]; the least is at most 0, the greatest at least 0.

        Args:
            seen: Of one or of many channels.
            levels: What the range will be divided into.
        """
        ...


OBSERVERS: Registry[type[Observer]] = Registry("observer", "inc_torch.quantizers.observers")


def fit_grid(low: torch.Tensor, high: torch.Tensor, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales (float32) and zero points (int32) of the grids that cover ranges.

    Symmetric: ``scale = max(-low, high) / ((levels.high - levels.low) / 2)``; asymmetric:
    ``scale = (high - low) / (levels.high - levels.low)``, ``zero_point = levels.low - round(low / scale)``.

    Args:
        low: Least values, at most 0.
        high: Greatest values, at least 0.
        levels: The codes.

    Example:
        >>> fit_grid(torch.tensor([-1.0]), torch.tensor([254.0]), Levels(0, 255, symmetric=False))
        (tensor([1.]), tensor([1], dtype=torch.int32))
    """
    steps = levels.high - levels.low
    low, high = low.double(), high.double()
    span = torch.maximum(-low, high) * 2 if levels.symmetric else high - low
    scale = (span / steps).to(torch.float32)
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, 1.0)
    if levels.symmetric:
        return scale, torch.full_like(scale, levels.zero_point, dtype=torch.int32)
    zero_point = (levels.low - torch.round(low / scale)).clamp_(levels.low, levels.high)
    return scale, zero_point.to(torch.int32)


def fit_float_grid(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and zero points, both float32, of 256 levels from the least value to the greatest.

    ``scale = (high - low) / 255``, ``zero_point = -low / scale``; a value is ``(code - zero_point) * scale``. The zero
    point is no code, so 0 need not be a level, nor lie in the range. Where low equals high the scale is 1. For rows of
    embedding tables.

    Reference: INC 2.6.1 ``asym_float``, torch's ``per_channel_affine_float_qparams``.

    Args:
        low: Least values.
        high: Greatest values, not below ``low``.

    Example:
        >>> fit_float_grid(torch.tensor([1.0]), torch.tensor([128.5]))
        (tensor([0.5000]), tensor([-2.]))
    """
    low = low.double()
    scale = ((high.double() - low) / 255).to(torch.float32)
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, 1.0)
    return scale, (-low / scale).to(torch.float32)


def observe(
    tensor: torch.Tensor, observer: Observer, levels: Levels, axis: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and the zero point of one tensor, such as a weight.

    Args:
        tensor: Finite and not empty, any floating dtype and rank.
        observer: Finds the range.
        levels: The codes.
        axis: Its slices are the channels, each with a range of its own; None takes the tensor as a whole.

    Returns:
        Scales (float32) and zero points (int32), each [channels], or [1] without an axis.

    Raises:
        ModelError: There is no value, or one that is not finite.

    Example:
        >>> from inc_torch.quantizers.observers.minmax import MinMax
        >>> weight = torch.tensor([[-1.0, 0.5], [0.0, 255.0]])
        >>> observe(weight, MinMax(), Levels.of(8, signed=True), axis=0)
        (tensor([0.0078, 2.0000]), tensor([0, 0], dtype=torch.int32))
    """
    finite = int(tensor.isfinite().sum())
    if finite < max(1, tensor.numel()):
        message = (
            f"{__name__}: {finite} of {tensor.numel()} values of a tensor {tuple(tensor.shape)} are finite; expected "
            "all, and at least one. Look for what made the others, or leave the tensor in float."
        )
        raise ModelError(message)
    groups = (tensor,) if axis is None else torch.split(tensor, _CHANNELS_AT_ONCE, dim=axis)
    seen = (TensorStatistics.of(group, axis) for group in groups)
    grids = [fit_grid(*observer.range(statistics, levels), levels) for statistics in seen]
    scales, zero_points = zip(*grids, strict=True)
    return torch.cat(scales), torch.cat(zero_points)
