"""Scales of input channels, and narrower ranges, for which a rounded weight changes the outputs least.

Source: Lin et al., *AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration*, arXiv:2306.00978.
A linear layer gives the same if its weights are multiplied with a scale for each input, and the inputs are divided by
it. Of weights that share a scale of rounding, those that are multiplied with more are rounded more finely:

    s = max(x^r / w^(1 - r), 1e-4), then divided by the root of max(s) * min(s)

``x`` are the mean magnitudes of the inputs and ``w`` those of the weights, in shares of the greatest one in their
group. Which ``r`` is best follows from the moments ``H``, the mean of x x^T over all tokens: an error ``D`` of the
weight changes output ``i`` by the mean square ``(D H D^T)_ii``, so nothing has to be run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from inc_torch.quantizers._codes import SMALLEST_SCALE
from inc_torch.quantizers._spec import WeightOnlyScheme
from inc_torch.quantizers._weight_only import round_to_nearest, rounded_values

__all__ = ["awq_scale", "output_changes", "search_clips", "search_scale", "weight_importance"]

_RATIOS: Final = tuple(step / 20 for step in range(20))
"""0, 0.05 and so on to 0.95."""
_CLIP_RATIOS: Final = tuple(1.0 - step / 100 for step in range(10))
"""1.0, 0.99 and so on to 0.91."""
_LEAST_SCALE: Final = 1e-4


def output_changes(difference: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """The mean square by which each output changes if the weight changes by ``difference``, float32 [out].

    Args:
        difference: [out, in].
        moments: The mean of x x^T over the inputs, [in, in].

    Example:
        >>> output_changes(torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        tensor([2.])
    """
    return ((difference @ moments) * difference).sum(1)


def weight_importance(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """``w``: the mean over outputs of each weight's magnitude, as a share of the greatest in its group, [in].

    Args:
        weight: [out, in].
        group_size: Of the scheme.

    Example:
        >>> weight_importance(torch.tensor([[4.0, -2.0], [1.0, 2.0]]), group_size=-1)
        tensor([0.7500, 0.7500])
    """
    columns = weight.shape[1]
    length = columns if group_size == -1 else min(group_size, columns)
    magnitudes = weight.detach().to(torch.float32).abs()
    shares = [
        group / group.amax(1, keepdim=True).clamp(min=SMALLEST_SCALE)
        for group in torch.split(magnitudes, length, dim=1)
    ]
    return torch.cat(shares, dim=1).mean(0)


def awq_scale(inputs: torch.Tensor, weights: torch.Tensor, ratio: float) -> torch.Tensor:
    """``s`` of the head of this file, [in]; 1 where an input or all its weights are always 0.

    Args:
        inputs: ``x``, [in], at least 0.
        weights: ``w``, [in], in [0, 1].
        ratio: ``r``, in [0, 1].

    Source: INC 2.6.1, ``awq_args``; it gives an input that is always 0 the scale 1e-4, which moves all the others.

    Example:
        >>> awq_scale(torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]), ratio=0.5)
        tensor([1.4142, 0.7071, 1.0000])
    """
    used = (inputs > 0) & (weights > 0)
    if not used.any():
        return torch.ones_like(inputs)
    scale = (inputs.pow(ratio) / weights.clamp(min=SMALLEST_SCALE).pow(1 - ratio)).clamp(min=_LEAST_SCALE)
    middle = (scale[used].max() * scale[used].min()).sqrt()
    return torch.where(used, scale / middle, 1.0)


def search_scale(
    layers: Sequence[tuple[torch.Tensor, WeightOnlyScheme]], inputs: torch.Tensor, moments: torch.Tensor
) -> torch.Tensor | None:
    """Find the scale that layers which read the same inputs share.

    Of 20 ratios the one for which the errors of the outputs are least; those of a layer count in shares of its error
    without a scale, so that none outweighs the others.

    Args:
        layers: Weights [out, in], and how they are rounded.
        inputs: ``x``, [in].
        moments: ``H``, [in, in].

    Returns:
        float32 [in], which weights are multiplied with and inputs are divided by; None where every scale is worse than
        none.

    Source: INC 2.6.1, ``awq_args`` with ``enable_auto_scale``, which runs the block for each ratio to compare its
    outputs, and takes the best scale also where it is worse than none.

    Example:
        >>> inputs = torch.tensor([[8.0, 0.1], [-8.0, 0.1]])
        >>> weight = torch.tensor([[0.52, 1.0]])  # the first weight matters, the second one sets the range
        >>> scheme = WeightOnlyScheme(bits=3, group_size=-1)
        >>> search_scale([(weight, scheme)], inputs.abs().mean(0), inputs.T @ inputs / 2)
        tensor([1.3868, 0.7211])
    """
    weights = [weight.detach().to(torch.float32) for weight, _ in layers]
    schemes = [scheme for _, scheme in layers]
    importance = _joint_importance(weights, schemes)
    unscaled = [
        _error(weight, scheme, moments, None).clamp(min=torch.finfo(torch.float32).tiny)
        for weight, scheme in zip(weights, schemes, strict=True)
    ]
    best, least = None, float(len(layers))
    for ratio in _RATIOS:
        scale = awq_scale(inputs, importance, ratio)
        errors = [
            _error(weight, scheme, moments, scale) / before
            for weight, scheme, before in zip(weights, schemes, unscaled, strict=True)
        ]
        total = float(torch.stack(errors).sum())
        if total < least:
            best, least = scale, total
    return best


def search_clips(
    weight: torch.Tensor, scheme: WeightOnlyScheme, moments: torch.Tensor, scale: torch.Tensor | None
) -> torch.Tensor:
    """Find for each output what the ranges of its weights are multiplied with, so that its error is least, [out].

    Of 1.0, 0.99 and so on to 0.91; of equal ones the greatest.

    Args:
        weight: [out, in].
        scheme: How it is rounded.
        moments: ``H``, [in, in], of inputs that are not divided.
        scale: What weights are multiplied with before they are rounded; None is nothing.

    Source: INC 2.6.1, ``awq_args`` with ``enable_mse_search``, which takes one ratio for all outputs of a layer.

    Example:
        >>> weight = torch.tensor([[1.0, 0.3], [1.0, 0.3333]])
        >>> search_clips(weight, WeightOnlyScheme(bits=3, group_size=-1), torch.diag(torch.tensor([0.0, 1.0])), None)
        tensor([0.9100, 1.0000])
    """
    errors = torch.stack([_errors(weight, scheme, moments, scale, ratio) for ratio in _CLIP_RATIOS])
    return torch.tensor(_CLIP_RATIOS, device=weight.device)[errors.argmin(0)]


def _joint_importance(weights: Sequence[torch.Tensor], schemes: Sequence[WeightOnlyScheme]) -> torch.Tensor:
    rows = sum(map(len, weights))
    parts = [
        weight_importance(weight, scheme.group_size) * (len(weight) / rows)
        for weight, scheme in zip(weights, schemes, strict=True)
    ]
    return torch.stack(parts).sum(0)


def _error(
    weight: torch.Tensor, scheme: WeightOnlyScheme, moments: torch.Tensor, scale: torch.Tensor | None
) -> torch.Tensor:
    return _errors(weight, scheme, moments, scale, 1.0).sum()


def _errors(
    weight: torch.Tensor,
    scheme: WeightOnlyScheme,
    moments: torch.Tensor,
    scale: torch.Tensor | None,
    clip_ratio: float,
) -> torch.Tensor:
    values = weight.detach().to(torch.float32)
    scaled = values if scale is None else values * scale
    rounded = rounded_values(round_to_nearest(scaled, scheme, clip_ratio), scheme)
    return output_changes((rounded if scale is None else rounded / scale) - values, moments)
