"""Scales of input channels, of weights that are rounded alone: who shares one, and where the other half of it goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, final

import torch
from torch import nn

from inc_torch.pruners.calibrated import BlockLayer
from inc_torch.quantizers import (
    Flow,
    Int8Module,
    SmoothingGroup,
    WeightOnlyScheme,
    adopt_rounded,
    divide_output_,
    round_to_nearest,
)

__all__ = ["Scaled", "adopt_scaled", "fold_", "groups_within"]


@final
class Scaled(NamedTuple):
    """A layer, and what its weight is multiplied with before it is rounded.

    Attributes:
        layer: In float.
        scheme: How it is rounded.
        scale: [in]; None is nothing.
        is_folded: Whether inputs come divided by the scale; else the layer divides them.
    """

    layer: BlockLayer
    scheme: WeightOnlyScheme
    scale: torch.Tensor | None
    is_folded: bool


def groups_within(flow: Flow, names: Collection[str], keeping: Collection[str]) -> list[SmoothingGroup]:
    """The layers among ``names`` that share a scale, each layer in one group at most.

    Args:
        flow: Which modules can absorb scales.
        names: Layers that can be scaled.
        keeping: Those of them that may divide their inputs themselves, where no module before them can.
    """
    groups = [
        SmoothingGroup(layers, producer)
        for producer, layers in flow.groups.items()
        if all(layer in names for layer in layers)
    ]
    grouped = {layer for group in groups for layer in group.layers}
    return groups + [SmoothingGroup((name,)) for name in names if name in keeping and name not in grouped]


def fold_(modules: Mapping[str, nn.Module], group: SmoothingGroup, scale: torch.Tensor) -> bool:
    """Divide the output of the module before a group by ``scale``; whether that was possible.

    A module that is rounded already absorbs nothing.
    """
    producer = None if group.producer is None else modules[group.producer]
    if producer is None or isinstance(producer, Int8Module):
        return False
    divide_output_(producer, scale)
    return True


def adopt_scaled(scaled: Scaled, clips: torch.Tensor | None = None) -> None:
    """Round a layer to the nearest, in place, as its weights are when those after it have taken their scales.

    Args:
        scaled: The layer and its scale.
        clips: What ranges are multiplied with, [out]; None is nothing.
    """
    weight = scaled.layer.matrix().detach().to(torch.float32)
    if scaled.scale is not None:
        weight = weight * scaled.scale
    rounded = round_to_nearest(weight, scaled.scheme, 1.0 if clips is None else clips)
    factor = None if scaled.scale is None or scaled.is_folded else scaled.scale.reciprocal()
    adopt_rounded(scaled.layer.module, rounded, scaled.scheme, factor=factor)
