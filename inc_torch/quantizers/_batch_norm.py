"""Batch normalization that uses and keeps its running statistics while the rest of the model trains.

Late in quantization-aware training the statistics of a batch are noise that inference does not have (Krishnamoorthi,
arXiv 1806.08342, section 3.2.1). Frozen modules change class, so ``model.train()`` does not wake them.
"""

from __future__ import annotations

from typing import Any, Final, final

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from inc_torch.core.names import named_layers
from inc_torch.core.sharding import exchange_class, plain_class

__all__ = ["batch_norms", "freeze_batch_norm", "thaw_batch_norm"]


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
