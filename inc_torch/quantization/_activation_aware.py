"""AWQ on the layers of one block: scales first, for all of them, then narrower ranges, then codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from inc_torch.core.report import Finding
from inc_torch.pruners.calibrated import BlockLayer
from inc_torch.quantization._scaling import Scaled, adopt_scaled, fold_, groups_within
from inc_torch.quantization._seen import SeenInputs
from inc_torch.quantizers import (
    AwqSettings,
    Flow,
    SmoothingGroup,
    WeightOnlyScheme,
    search_clips,
    search_scale,
    weight_only_name,
)

__all__ = ["round_activation_aware"]


def round_activation_aware(
    block: Sequence[tuple[BlockLayer, SeenInputs]],
    schemes: Mapping[str, WeightOnlyScheme],
    modules: Mapping[str, nn.Module],
    flow: Flow,
) -> list[Finding]:
    """Round the layers of a block in place.

    Args:
        block: The layers, and what they were given.
        schemes: By name of the layer: how it is rounded.
        modules: All of the model, by name.
        flow: Which of them can absorb scales.
    """
    seen = {layer.name: statistics for layer, statistics in block}
    layers = {layer.name: layer for layer, _ in block}
    settings = {name: schemes[name].awq or AwqSettings() for name in layers}
    names = [name for name in layers if settings[name].scale]
    groups = groups_within(flow, names, [name for name in names if not settings[name].folding])
    # All scales before any weight changes: a layer may absorb the scale of one group and belong to another.
    found = [(group, _search(group, layers, schemes, seen)) for group in groups]
    scaled = {name: Scaled(layer, schemes[name], None, is_folded=False) for name, layer in layers.items()}
    notes = dict.fromkeys(layers, "no scale")
    for group, scale in found:
        if scale is None:
            continue
        is_folded = fold_(modules, group, scale)
        note = f"its scale is in {group.producer!r}" if is_folded else "it scales its inputs"
        notes |= dict.fromkeys(group.layers, note)
        scaled |= {name: Scaled(layers[name], schemes[name], scale, is_folded) for name in group.layers}
    return [_rounded(scaled[name], seen[name], notes[name], clips=settings[name].clip) for name in layers]


def _search(
    group: SmoothingGroup,
    layers: Mapping[str, BlockLayer],
    schemes: Mapping[str, WeightOnlyScheme],
    seen: Mapping[str, SeenInputs],
) -> torch.Tensor | None:
    weights = [(layers[name].matrix(), schemes[name]) for name in group.layers]
    inputs = seen[group.layers[0]]  # the others read the same
    return search_scale(weights, inputs.magnitudes(), inputs.moments())


def _rounded(scaled: Scaled, seen: SeenInputs, note: str, *, clips: bool) -> Finding:
    layer, scheme = scaled.layer, scaled.scheme
    adopt_scaled(scaled, search_clips(layer.matrix(), scheme, seen.moments(), scaled.scale) if clips else None)
    return Finding(layer.name, scheme=weight_only_name(scheme), note=f"AWQ, {seen.tokens} tokens, {note}")
