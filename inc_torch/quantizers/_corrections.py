"""Repairing what rounding did to a weight, before it is rounded again."""

from __future__ import annotations

import torch

from inc_torch.core.errors import ModelError

__all__ = ["weight_correction"]

_LEAST_RANK = 2
_EPSILON = 1e-5
"""Added to the spread that is divided by."""


def weight_correction(weight: torch.Tensor, rounded: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Shift and stretch a weight so that, once rounded, each channel has its old mean and spread again.

        gain      = std(weight) / (std(rounded) + 1e-5)
        corrected = gain * weight + mean(weight) - gain * mean(rounded)

    with mean and standard deviation (of the population) over each slice along ``axis``. The result is to be rounded
    with the old scales. Zeros of ``weight`` stay zeros, so a pruned weight stays pruned. A channel whose rounded values
    are all equal has no spread to stretch and stays as it is.

    Args:
        weight: Any floating dtype, 2 axes or more.
        rounded: The same weight after rounding, decoded, of the same shape.
        axis: The axis of channels; 0 are the outputs of Linear and Conv.

    Returns:
        A new tensor like ``weight``.

    Raises:
        ModelError: The shapes differ, or have less than 2 axes, or there is no such axis.

    Example:
        >>> weight, rounded = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.0, 1.0, 2.0]])
        >>> weight_correction(weight, rounded)
        tensor([[0.0000, 1.3333, 4.3883]])

    Source: Banner et al., Post-training 4-bit quantization of convolution networks for rapid-deployment,
    arXiv:1810.05723, for the idea; INC 2.6.1 for the formula, with axis 1; differs in zeros and constant channels.
    """
    rank = weight.dim()
    if weight.shape != rounded.shape or rank < _LEAST_RANK or not -rank <= axis < rank:
        message = (
            f"inc_torch.quantizers.weight_correction was given a weight of shape {list(weight.shape)}, rounded values "
            f"of shape {list(rounded.shape)} and axis {axis}: expected equal shapes of 2 axes or more, and one of the "
            "axes. Pass the decoded values of the same weight."
        )
        raise ModelError(message)
    wide = torch.promote_types(weight.dtype, torch.float32)
    values, decoded = weight.to(wide), rounded.to(wide)
    others = [dimension for dimension in range(rank) if dimension != axis % rank]
    spread, mean = torch.std_mean(values, others, correction=0, keepdim=True)
    rounded_spread, rounded_mean = torch.std_mean(decoded, others, correction=0, keepdim=True)
    gain = spread / (rounded_spread + _EPSILON)
    corrected = gain * values + mean - gain * rounded_mean
    keeps = (values == 0) | (rounded_spread == 0)
    return torch.where(keeps, values, corrected).to(weight.dtype)
