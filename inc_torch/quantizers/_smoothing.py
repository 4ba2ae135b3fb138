"""SmoothQuant: make inputs easier to round by moving their outlying channels into the weights.

Source: Xiao et al., *SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models*, 2022.
A linear layer or convolution gives the same if input channel ``i`` is divided by ``s_i`` and the weights that it
meets are multiplied by it:

    s_i = max(a_i^alpha / w_i^(1 - alpha), 1e-5)

``a`` are the greatest magnitudes of the input channels and ``w`` those of the weights that meet them. With alpha 1 all
input channels become equally great, with alpha 0 the weights do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol, final

import torch
from torch import nn

from inc_torch.core.names import named_layers
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._flow import Flow
from inc_torch.quantizers._prepare import fake_quant_modules
from inc_torch.quantizers._producers import divide_output_, replace_tensors_

__all__ = [
    "SeenInput",
    "SmoothQuant",
    "Smoothed",
    "SmoothingGroup",
    "apply_smoothing",
    "group_scale",
    "smoothed_range",
    "smoothing_groups",
    "smoothing_scale",
    "weight_magnitudes",
]

_LEAST_SCALE: Final = 1e-5
_LEAST_WEIGHT: Final = 1e-5
_UNSEEN: Final = "calibration ran no batch through it"
_SHARED: Final = "its input stays in int8 between layers, on a grid that others share"


@final
@dataclass(frozen=True, slots=True)
class SmoothQuant:
    """How inputs are smoothed.

    Attributes:
        alpha: In [0, 1]; several are tried one after the other; ``"auto"`` searches one for each group of layers.
        folding: Put the inverse scales into the modules before, so that nothing is left to compute, and smooth only
            where that is possible. Else int8 modules multiply their input channels themselves.
        default_alpha: What the search begins with; of equal losses the first wins.
        alpha_min: Least candidate of the search.
        alpha_max: Greatest candidate.
        alpha_step: Distance of candidates.
        shared_criterion: How layers of one scale agree: on the least sum of their losses, or on the least or the
            greatest of the alphas that are best for each of them.
        do_blockwise: Search one alpha for all layers of a block, by the error of the block's output.
        search_samples: How many samples of each input the search looks at, layer by layer.
    """

    alpha: float | tuple[float, ...] | Literal["auto"] = 0.5
    folding: bool = False
    default_alpha: float = 0.5
    alpha_min: float = 0.0
    alpha_max: float = 1.0
    alpha_step: float = 0.1
    shared_criterion: Literal["mean", "min", "max"] = "mean"
    do_blockwise: bool = False
    search_samples: int = 32


class SeenInput(Protocol):
    """What calibration knows of the inputs of one module."""

    @property
    def channel_low(self) -> torch.Tensor:
        """Least value of each input channel, [in]."""
        ...

    @property
    def channel_high(self) -> torch.Tensor:
        """Greatest value of each input channel, [in]."""
        ...

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the tensors that were fed: modules with the same numbers read the same tensors."""
        ...

    @property
    def sample(self) -> Sequence[torch.Tensor]:
        """Some of the inputs."""
        ...


@final
class SmoothingGroup(NamedTuple):
    """Layers that share one scale.

    Attributes:
        layers: Their names.
        producer: The module that absorbs the inverse scale; None if the layers keep it.
    """

    layers: tuple[str, ...]
    producer: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Smoothed:
    """What was done to one layer.

    Attributes:
        alpha: Its alpha; None if it was left as it is.
        reason: Why it was left as it is; None if it was not.
        scale: What its input channels are divided by, in the layer or before it, float32 [in]; None if it was left.
    """

    alpha: float | None
    reason: str | None = None
    scale: torch.Tensor | None = field(default=None, compare=False, repr=False)


def smoothing_scale(input_magnitude: torch.Tensor, weight_magnitude: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return ``s = max(a^alpha / max(w, 1e-5)^(1 - alpha), 1e-5)``, what input channels are divided by.

    Where ``a^alpha`` is 0 the channel carried nothing, and ``s`` is 1. INC 2.6.1 does so in its search for alpha, but
    in ``fit`` gives such channels 1e-5, which blows up whatever comes there later.

    Args:
        input_magnitude: ``a``, [in], at least 0.
        weight_magnitude: ``w``, [in], at least 0.
        alpha: In [0, 1].

    Returns:
        [in], in the dtype of the magnitudes.

    Example:
        >>> smoothing_scale(torch.tensor([0.0, 16.0]), torch.tensor([4.0, 4.0]), alpha=0.5)
        tensor([1., 2.])
    """
    power = input_magnitude.pow(alpha)
    scale = (power / weight_magnitude.clamp(min=_LEAST_WEIGHT).pow(1 - alpha)).clamp(min=_LEAST_SCALE)
    return torch.where(power == 0, 1.0, scale)


def weight_magnitudes(module: FakeQuantModule) -> torch.Tensor:
    """The greatest magnitude of the weights that meet each input channel, float32 [in].

    Example:
        >>> from inc_torch.quantizers import QuantSpec, prepare_fake_quant
        >>> layer = nn.Conv1d(4, 2, 3, groups=2)
        >>> _ = prepare_fake_quant(layer, QuantSpec())
        >>> weight_magnitudes(layer).shape
        torch.Size([4])
    """
    weight = module.folded_weight()
    if module.output_axis == 1:
        return _greatest(weight.flatten(1), (1,))
    groups: int = getattr(module, "groups", 1)
    return _greatest(weight.view(groups, len(weight) // groups, weight.shape[1], -1), (1, 3))


def _greatest(weight: torch.Tensor, others: tuple[int, ...]) -> torch.Tensor:
    return torch.maximum(weight.amax(others), weight.amin(others).neg()).flatten().float()


def group_scale(layers: Iterable[FakeQuantModule], seen: Iterable[SeenInput], alpha: float) -> torch.Tensor:
    """The scale that layers share: of the greatest magnitudes among their inputs and among their weights.

    Returns:
        float32 [in], on the device of the weights.
    """
    weights = [weight_magnitudes(layer) for layer in layers]
    inputs = [torch.maximum(record.channel_low.abs(), record.channel_high.abs()) for record in seen]
    magnitude = torch.stack(inputs).amax(0).to(weights[0])
    return smoothing_scale(magnitude, torch.stack(weights).amax(0), alpha)


def smoothed_range(seen: SeenInput, scale: torch.Tensor) -> tuple[float, float]:
    """The least and greatest value of an input whose channels are divided by ``scale``; it contains 0.

    Args:
        seen: What calibration saw.
        scale: [in].
    """
    divisor = scale.to(seen.channel_low)
    low, high = (seen.channel_low / divisor).min(), (seen.channel_high / divisor).max()
    return min(low.item(), 0.0), max(high.item(), 0.0)


def smoothing_groups(
    model: nn.Module, inputs: Mapping[str, SeenInput], flow: Flow | None = None
) -> tuple[list[SmoothingGroup], dict[str, str]]:
    """Decide which layers share a scale.

    Args:
        model: A prepared model.
        inputs: By name, what calibration saw of every layer that ran.
        flow: Where scales can be folded; None lets layers keep them, and those share one that read the same tensors.

    Layers that share the grid of a tensor which stays in int8 are in none: their input is rounded before they read it.

    Returns:
        The groups, and by name the reason for every layer that is in none.
    """
    layers = {name: module for name, module in fake_quant_modules(model) if module.has_input_grid}
    unseen = dict.fromkeys(sorted(layers.keys() - inputs.keys()), _UNSEEN)
    unseen |= {name: _SHARED for name, module in layers.items() if module.range_owner is not None}
    if flow is not None:
        return _foldable_groups(flow, layers.keys(), unseen)
    shared: dict[object, list[str]] = {}
    for name in inputs:
        if name in layers and name not in unseen:
            # The same tensor has other channels for a convolution than for a linear layer.
            rank = layers[name].get_parameter("weight").dim()
            shared.setdefault((inputs[name].sources, rank, len(inputs[name].channel_low)), []).append(name)
    return [SmoothingGroup(tuple(names)) for names in shared.values()], unseen


def _foldable_groups(
    flow: Flow, layers: Collection[str], unseen: dict[str, str]
) -> tuple[list[SmoothingGroup], dict[str, str]]:
    """Those of ``flow`` all whose layers are still to be quantized and have been seen."""
    groups = []
    refused = {name: reason for name, reason in flow.refused.items() if name in layers}
    for producer, names in flow.groups.items():
        lacking = {
            name: unseen.get(name, "it stays in float") for name in names if name in unseen or name not in layers
        }
        if not lacking:
            groups.append(SmoothingGroup(names, producer))
            continue
        first, why = next(iter(lacking.items()))
        refused |= {name: f"{first!r}, which reads the same: {why}" for name in names if name in layers}
    return groups, refused | unseen


def apply_smoothing(
    model: nn.Module,
    inputs: Mapping[str, SeenInput],
    alpha: float | Mapping[str, float],
    flow: Flow | None = None,
) -> dict[str, Smoothed]:
    """Smooth the inputs of all linear layers and convolutions of a prepared model, and set their ranges.

    The ranges of smoothed layers come from the extremes of their input channels:
    ``[min(0, min(low / s)), max(0, max(high / s))]``. Call it after ranges were set otherwise.

    Without ``flow`` no weight changes, and it can be called again with another alpha. With ``flow`` the layers and the
    modules before them get new Parameters, so that another model that shares the old ones is not changed; a layer where
    folding is impossible is left as it is.

    INC 2.6.1 smooths Linear alone unless folding; with folding, of grouped convolutions the depthwise alone.

    Args:
        model: A prepared model, calibrated, not converted.
        inputs: By name, what calibration saw.
        alpha: In [0, 1]; or by layer name, as the search gives it.
        flow: From `trace_flow`, to fold scales into the modules before.

    Returns:
        By layer name: its alpha, or why it was left.

    Example:
        >>> from types import SimpleNamespace
        >>> from inc_torch.quantizers import QuantSpec, prepare_fake_quant
        >>> layer = nn.Linear(2, 2)
        >>> layer.weight.data = torch.tensor([[1.0, -4.0], [0.5, 2.0]])
        >>> _ = prepare_fake_quant(layer, QuantSpec())
        >>> low, high = torch.tensor([-4.0, 0.0]), torch.tensor([1.0, 16.0])
        >>> seen = SimpleNamespace(channel_low=low, channel_high=high, sources=(0,), sample=[])
        >>> apply_smoothing(layer, {"": seen}, alpha=0.5)
        {'': Smoothed(alpha=0.5, reason=None)}
        >>> layer.smoothing
        tensor([2., 2.])
    """
    layers = dict(fake_quant_modules(model))
    for layer in layers.values():
        layer.smooth(None)
    groups, refused = smoothing_groups(model, inputs, flow)
    results = {name: Smoothed(None, reason) for name, reason in refused.items()}
    # All scales before any weight changes: a layer may absorb the scale of one group and belong to another.
    scaled: list[tuple[SmoothingGroup, torch.Tensor]] = []
    for group in groups:
        chosen = alpha[group.layers[0]] if isinstance(alpha, Mapping) else alpha
        scale = group_scale([layers[name] for name in group.layers], [inputs[name] for name in group.layers], chosen)
        if scale.isfinite().all():
            scaled.append((group, scale))
            results |= dict.fromkeys(group.layers, Smoothed(chosen, scale=scale))
        else:
            results |= dict.fromkeys(group.layers, Smoothed(None, "its weights or inputs are not finite"))
    modules = dict(named_layers(model))
    for group, scale in scaled:
        if group.producer is not None:
            divide_output_(modules[group.producer], scale)
        for name in group.layers:
            _smooth_layer(layers[name], inputs[name], scale, is_folded=group.producer is not None)
    return {name: results[name] for name in layers if name in results}


def _smooth_layer(layer: FakeQuantModule, seen: SeenInput, scale: torch.Tensor, *, is_folded: bool) -> None:
    if is_folded:
        weight = layer.get_parameter("weight").detach()
        replace_tensors_(layer, {"weight": (weight * layer._along_weight(scale)).to(weight.dtype)})
    else:
        layer.smooth(scale)
    if layer.observes:
        layer.set_range(*smoothed_range(seen, scale))
