"""TEQ on a model: scales that are learned by its own loss, or in a loop of the user, and folded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from inc_torch.core.batches import Inputs, run, split
from inc_torch.core.errors import InexactWarning, ModelError
from inc_torch.core.modes import evaluating, without_compiling
from inc_torch.core.progress import with_progress
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners.calibrated import BlockLayer
from inc_torch.quantization._scaling import Scaled, adopt_scaled, fold_, groups_within
from inc_torch.quantizers import Flow, SmoothingGroup, TeqSettings, WeightOnlyScheme, learn_scales, learnable_scales

__all__ = ["round_by_equivalence"]

_IGNORED = -100
"""The label of tokens that count in no loss, in torch and transformers."""


def round_by_equivalence(
    model: nn.Module,
    schemes: Mapping[str, WeightOnlyScheme],
    flow: Flow,
    batches: Sequence[Any],
    train: Callable[[nn.Module], object] | None,
) -> dict[str, str]:
    """Learn scales, and round layers with them, in place.

    Args:
        model: In float.
        schemes: By name of the layer: how it is rounded.
        flow: Which modules can absorb scales.
        batches: Of calibration; scales are learned from the model's own loss on them.
        train: Learns them instead: of the model that it is given only scales require gradients.

    Returns:
        By name of the layer: what was done.

    Raises:
        ModelError: The model has no loss, or ``train`` changed no scale.
    """
    modules = dict(model.named_modules())
    layers = {name: BlockLayer(name, modules[name]) for name in schemes}
    settings = {name: scheme.teq or TeqSettings() for name, scheme in schemes.items()}
    groups = groups_within(flow, list(schemes), [name for name in schemes if not settings[name].folding])
    scales: list[torch.Tensor | None] = []
    if groups:
        scales += _learned(model, layers, schemes, groups, settings[groups[0].layers[0]], batches, train)
    else:
        _warn_of_nothing_to_scale(flow)
    scaled = {name: Scaled(layer, schemes[name], None, is_folded=False) for name, layer in layers.items()}
    notes = dict.fromkeys(layers, "TEQ, no scale")
    for group, scale in zip(groups, scales, strict=True):
        if scale is None:
            continue
        is_folded = fold_(modules, group, scale)
        note = f"its scale is in {group.producer!r}" if is_folded else "it scales its inputs"
        notes |= dict.fromkeys(group.layers, f"TEQ, {note}")
        scaled |= {name: Scaled(layers[name], schemes[name], scale, is_folded) for name in group.layers}
    for name in layers:
        adopt_scaled(scaled[name])
    return notes


def _learned(
    model: nn.Module,
    layers: Mapping[str, BlockLayer],
    schemes: Mapping[str, WeightOnlyScheme],
    groups: Sequence[SmoothingGroup],
    settings: TeqSettings,
    batches: Sequence[Any],
    train: Callable[[nn.Module], object] | None,
) -> list[torch.Tensor | None]:
    """A scale for each group; None where scaling does not make the loss less."""
    with evaluating(model), without_compiling(), torch.enable_grad():
        given = {name: (layer.module, layer.matrix(), schemes[name]) for name, layer in layers.items()}
        with learnable_scales(given, [group.layers for group in groups]) as scales:
            if train is not None:
                with _trainable(model, scales):
                    train(model)
                if all(bool((scale == 1).all()) for scale in scales):
                    raise ModelError(_UNTRAINED)
                return [scale.detach().clone() for scale in scales]
            inputs = [split(batch, model)[0] for batch in batches]
            before = _mean_loss(model, inputs)
            steps = iter(with_progress(range(settings.steps), "Learning scales"))
            learn_scales(scales, lambda step: _loss(model, inputs[step % len(inputs)]), settings, steps)
            if _mean_loss(model, inputs) < before:
                return [scale.detach().clone() for scale in scales]
    return [None] * len(groups)


_UNTRAINED = (
    "calib_func changed no scale: with the algorithm TEQ it is expected to train the model that it is given. Of its "
    "Parameters those with requires_grad are the scales; give them to an optimizer, and step it."
)


@contextmanager
def _trainable(model: nn.Module, scales: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let nothing but scales require gradients, for a while."""
    own = {id(scale) for scale in scales}
    before = {parameter: parameter.requires_grad for parameter in model.parameters() if id(parameter) not in own}
    for parameter in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


@torch.no_grad()
def _mean_loss(model: nn.Module, inputs: Sequence[Inputs]) -> float:
    return sum(float(_loss(model, batch)) for batch in inputs) / len(inputs)


def _loss(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """The model's own loss; where a batch has no labels, that of its tokens as labels."""
    kwargs = dict(inputs.kwargs)
    if "labels" not in kwargs:
        if "labels" not in inspect.signature(model.forward).parameters:
            raise ModelError(_without_loss(model))
        kwargs["labels"] = _tokens_as_labels(model, inputs)
    output = run(model, Inputs(inputs.args, kwargs))
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, torch.Tensor):
        raise ModelError(_without_loss(model))
    return loss


def _tokens_as_labels(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    tokens = inputs.kwargs.get("input_ids", inputs.args[0] if inputs.args else None)
    if not isinstance(tokens, torch.Tensor) or tokens.is_floating_point():
        raise ModelError(_without_loss(model))
    mask = inputs.kwargs.get("attention_mask")
    return tokens.masked_fill(mask == 0, _IGNORED) if isinstance(mask, torch.Tensor) else tokens


def _without_loss(model: nn.Module) -> str:
    return (
        f"The algorithm TEQ learns scales by a loss, and {type(model).__name__} returns none: expected a model that "
        "takes labels and returns a loss, as those of transformers do, and batches of tokens or with labels. Otherwise "
        "give a calib_func that trains the model that it is given."
    )


def _warn_of_nothing_to_scale(flow: Flow) -> None:
    name, reason = next(iter(flow.refused.items()), ("the model", "it has no layer to scale"))
    message = (
        f"The algorithm TEQ finds no layer whose scale the module before it can absorb, so that weights are rounded to "
        f"the nearest. Of {name!r}: {reason}. With recipes={{'teq_args': {{'folding': False}}}} layers scale their "
        "inputs themselves."
    )
    warn_user(message, InexactWarning)
