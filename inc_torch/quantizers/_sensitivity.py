"""How much rounding changes a tensor."""

from __future__ import annotations

import torch

from inc_torch.core.errors import ModelError

__all__ = ["normalised_mse"]


def normalised_mse(reference: torch.Tensor, rounded: torch.Tensor) -> float:
    """Return the mean squared difference of two tensors, each scaled to [0, 1] by its own range.

        n(t) = (t - min t) / (max t - min t), 0 for a constant t
        gap  = mean((n(reference) - n(rounded))**2)

    A pure factor or offset is invisible to it. Computed in float64.

    Args:
        reference: The float values, any shape with an element.
        rounded: The values after rounding, decoded, of the same shape.

    Returns:
        A number in [0, 1]; NaN if a value is not finite.

    Raises:
        ModelError: The shapes differ, or there is no element.

    Example:
        >>> normalised_mse(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 3.0, 4.0]))
        0.020833333333333332

    Source: INC 2.6.1, strategy ``mse``; differs in constant tensors, which divided by zero.
    """
    if reference.shape != rounded.shape or not reference.numel():
        message = (
            f"inc_torch.quantizers.normalised_mse was given shapes {list(reference.shape)} and {list(rounded.shape)}: "
            "expected one shape with an element. Compare the same tensor before and after rounding."
        )
        raise ModelError(message)
    return float((_normalised(reference) - _normalised(rounded)).square().mean())


def _normalised(values: torch.Tensor) -> torch.Tensor:
    values = values.detach().double()
    low, high = torch.aminmax(values)
    return (values - low) / torch.where(high == low, 1.0, high - low)
