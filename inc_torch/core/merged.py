"""Layers that compute with another weight than their Parameter, because something trained is added to it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

__all__ = ["Merged", "lend", "merged_over", "take_back"]

_PLACE = "_inc_torch_merged"


class Merged(Protocol):
    """What stands over a layer whose own weight is frozen, such as its LoRA adapters.

    Attributes:
        merged_gradient: Gradient of the loss with respect to `merged_weight`, complete from
            ``on_before_optimizer_step`` on; None where no forward of the layer had a part in the loss.
    """

    merged_gradient: torch.Tensor | None

    def merged_weight(self) -> torch.Tensor:
        """The weight that the layer computes with, shaped like its own, detached."""
        ...


def lend(layer: nn.Module, merged: Merged) -> None:
    """Let ``layer`` be known as one that computes with the weight of ``merged``.

    Not as a child, of which it is one itself: neither names nor state dict of the model change.
    """
    layer.__dict__[_PLACE] = merged


def take_back(layer: nn.Module) -> None:
    """Let ``layer`` compute with its own weight again."""
    layer.__dict__.pop(_PLACE, None)


def merged_over(layer: nn.Module) -> Merged | None:
    """What stands over ``layer``, or None if it computes with its own weight.

    Example:
        >>> merged_over(nn.Linear(2, 2)) is None
        True
    """
    merged: Merged | None = layer.__dict__.get(_PLACE)
    return merged
