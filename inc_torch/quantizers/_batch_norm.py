"""Batch normalization that uses and keeps its running statistics while the rest of the model trains.

Late in quantization-aware training the statistics of a batch are noise that inference does not have (Krishnamoorthi,
arXiv 1806.08342, section 3.2.1). Frozen modules change class, so ``model.train()`` does not wake them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from inc_torch.core.names import named_layers
from inc_torch.core.ranks import Ranks
from inc_torch.core.sharding import exchange_class, plain_class

__all__ = [
    "batch_norms",
    "can_fold",
    "fold_factor",
    "folded_bias",
    "freeze_batch_norm",
    "share_statistics",
    "take_away_norm",
    "thaw_batch_norm",
    "trainable_factor",
]


class _FrozenBatchNorm(nn.Module):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's argument name
        """Normalize by the running statistics, in training too; scale and shift get their gradients."""
        own: Any = self
        return F.batch_norm(input, own.running_mean, own.running_var, own.weight, own.bias, eps=own.eps)


@final
class FrozenBatchNorm1d(_FrozenBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` whose statistics stay."""


@final
class FrozenBatchNorm2d(_FrozenBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose statistics stay."""


@final
class FrozenBatchNorm3d(_FrozenBatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` whose statistics stay."""


@final
class FrozenSyncBatchNorm(_FrozenBatchNorm, nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm` whose statistics stay; there is nothing left to synchronize."""


_FROZEN: Final[dict[type[nn.Module], type[nn.Module]]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
    nn.SyncBatchNorm: FrozenSyncBatchNorm,
}
_THAWED: Final = {frozen: plain for plain, frozen in _FROZEN.items()}


def batch_norms(model: nn.Module) -> dict[str, bool]:
    """Name all batch normalizations with running statistics, and say whether they can be frozen: subclasses cannot.

    Example:
        >>> batch_norms(nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.LayerNorm(4)))
        {'0': True}
    """
    return {
        name: plain_class(type(module)) in _FROZEN or isinstance(module, _FrozenBatchNorm)
        for name, module in named_layers(model)
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


def freeze_batch_norm(model: nn.Module) -> None:
    """Let batch normalization use and keep its running statistics, in place, also where ``training`` is true.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> freeze_batch_norm(layer)
        >>> _ = layer.train()(torch.full((4, 2), 9.0))
        >>> layer.running_mean.tolist()
        [0.0, 0.0]
    """
    for module in model.modules():
        frozen = _FROZEN.get(plain_class(type(module)))
        if frozen is not None and module.track_running_stats:
            exchange_class(module, frozen)


def thaw_batch_norm(model: nn.Module) -> None:
    """Undo `freeze_batch_norm`."""
    for module in model.modules():
        if (plain := _THAWED.get(plain_class(type(module)))) is not None:
            exchange_class(module, plain)


_LEAST_FACTOR: Final = 1e-12
"""What is multiplied with less is zero, and nothing can be divided by it."""


def can_fold(module: nn.Module) -> bool:
    """Whether ``module`` is a batch normalization of torch that has running statistics to be folded by.

    Example:
        >>> can_fold(nn.BatchNorm2d(4)), can_fold(nn.BatchNorm2d(4, track_running_stats=False))
        (True, False)
    """
    kind = plain_class(type(module))
    return (kind in _FROZEN or kind in _THAWED) and module._buffers.get("running_var") is not None


def _deviation_inverse(norm: Any) -> torch.Tensor:  # noqa: ANN401  any batch normalization
    inverse: torch.Tensor = torch.rsqrt(norm.running_var.float() + norm.eps)
    return inverse


def fold_factor(norm: nn.Module) -> torch.Tensor:
    """What a batch normalization by running statistics multiplies each channel with, float32 [channels], detached.

        f = gamma / sqrt(running_var + eps)

    Example:
        >>> norm = nn.BatchNorm1d(1, eps=0.0)
        >>> _ = norm.running_var.fill_(4.0)
        >>> fold_factor(norm)
        tensor([0.5000])
    """
    own: Any = norm
    inverse = _deviation_inverse(norm)
    gamma: torch.Tensor | None = own.weight
    return inverse if gamma is None else gamma.detach().float() * inverse


def trainable_factor(norm: nn.Module) -> torch.Tensor:
    """`fold_factor`, with gamma taken for 1 where it is 0, so that it can be divided by.

    What is multiplied with a gamma of 0 afterwards is 0 either way, but gamma learns by what is multiplied with it.

    Example:
        >>> norm = nn.BatchNorm1d(2, eps=1.0)
        >>> _ = norm.weight.data.copy_(torch.tensor([0.0, -2.0])), norm.running_var.fill_(3.0)
        >>> trainable_factor(norm)
        tensor([ 0.5000, -1.0000])
    """
    factor = fold_factor(norm)
    return torch.where(factor.abs() < _LEAST_FACTOR, _deviation_inverse(norm), factor)


def folded_bias(norm: nn.Module, bias: torch.Tensor | None) -> torch.Tensor:
    """The bias of a layer with this batch normalization in it: ``beta + (b - running_mean) * f``, float32 [channels].

    Example:
        >>> norm = nn.BatchNorm1d(1, eps=0.0)
        >>> _ = norm.running_mean.fill_(3.0)
        >>> folded_bias(norm, torch.tensor([1.0]))
        tensor([-2.])
    """
    own: Any = norm
    mean = own.running_mean.float()
    shift: torch.Tensor = -mean if bias is None else bias.detach().float() - mean
    shift = shift * fold_factor(norm)
    beta: torch.Tensor | None = own.bias
    return shift if beta is None else shift + beta.detach().float()


def take_away_norm(norm: nn.Module) -> None:
    """Turn a batch normalization whose numbers are in the layer before it into `torch.nn.Identity`, in place."""
    norm._parameters.clear()
    norm._buffers.clear()
    exchange_class(norm, nn.Identity)


def share_statistics(norms: Sequence[nn.Module], ranks: Ranks) -> None:
    """Give the running statistics of every rank the means over all of them, in place: a collective.

    Each rank has moved them by its own last batch, which DistributedDataParallel evens out at the next forward only.
    """
    if ranks.count == 1 or not norms:
        return
    tensors = [norm.get_buffer(name) for norm in norms for name in ("running_mean", "running_var")]
    total = ranks.sum_(torch.cat([tensor.flatten().double() for tensor in tensors])) / ranks.count
    for tensor, mean in zip(tensors, torch.split(total, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
