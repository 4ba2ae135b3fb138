"""Which layers make the inputs of which, channel by channel: found by changing one and watching the others.

    source ──► activation, dropout, product with another source, norm or depthwise convolution ──► sink

Of each linear layer or convolution some of the outputs are changed, of a linear layer at one place of one batch, of a
convolution in one image. Where another layer's input then differs in these channels at this place and nowhere else,
nothing between the two mixes channels, and a channel that the other layer does not look at can be taken out of both,
and of the norms and depthwise convolutions between them. No class and no name of a model is known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.batches import Inputs, output_of
from inc_torch.core.errors import ModelError
from inc_torch.core.names import named_layers, unwrapped
from inc_torch.pruners._matrix import is_linear

__all__ = ["Channels", "Sink", "find_sinks"]

_CHANNELS = 16
"""About how many are changed, none of them neighbours of another."""
_FEWEST_PLACES = 2
"""Tokens or samples: with one, what mixes them would not be seen."""


@final
@dataclass(frozen=True, slots=True)
class Sink:
    """A layer, and those that make its inputs channel by channel.

    Attributes:
        name: Of the layer.
        sources: Names of the others, in the order in which they run.
        between: Names of the layers that hand their channels on, each for itself: batch norms, depthwise convolutions.
    """

    name: str
    sources: tuple[str, ...]
    between: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Channels:
    """The layers of a model that make, read or hand on channels, each with tensors of its own, by name.

    Attributes:
        mixing: Linear layers and convolutions of one group: every output looks at every input.
        passing: Batch norms, depthwise convolutions, activations with a weight for each channel.
    """

    mixing: dict[str, nn.Module]
    passing: dict[str, nn.Module]

    @classmethod
    def of(cls, model: nn.Module) -> Channels:
        """Find them in the user's own model."""
        holders = Counter(id(module._parameters.get("weight")) for _, module in named_layers(model))
        own = {
            name: module
            for name, module in named_layers(model)
            if module._parameters.get("weight") is None or holders[id(module._parameters["weight"])] == 1
        }
        return cls(
            {name: module for name, module in own.items() if is_linear(module) or _has_one_group(module)},
            {name: module for name, module in own.items() if _hands_on(module)},
        )


def _has_one_group(module: nn.Module) -> bool:
    if not isinstance(module, nn.modules.conv._ConvNd):
        return False
    return module.groups == 1 and module._parameters.get("weight") is not None


def _hands_on(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvNd):
        return 1 < module.groups == module.in_channels == module.out_channels
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.PReLU)


def find_sinks(model: nn.Module, inputs: Inputs) -> list[Sink]:
    """Find all layers whose inputs are made channel by channel by other layers.

    Each layer costs a forward.

    Args:
        model: Any model, wrapped or not.
        inputs: What it is run on: of two places (tokens, samples) or more, of two images for convolutions.

    Raises:
        ModelError: ``inputs`` hold a single place.
    """
    channels = Channels.of(unwrapped(model))
    watched = channels.mixing | channels.passing
    expected: dict[str, torch.Tensor] = {}
    calls: Counter[str] = Counter()

    def note(name: str, entering: torch.Tensor) -> None:
        calls[name] += 1
        expected[name] = entering.clone()

    with _watching(watched, note):
        output_of(model, inputs)
    followed = {name for name, entering in expected.items() if _places(watched[name], entering) >= _FEWEST_PLACES}
    once = {name: watched[name] for name in expected if name in followed and calls[name] == 1}
    if expected and not followed:
        message = (
            f"{type(unwrapped(model)).__name__} was run on a single token or sample: expected two or more, or layers "
            "that mix them cannot be told from those that do not. Give a batch of more."
        )
        raise ModelError(message)
    sources: dict[str, list[str]] = {name: [] for name in once if name in channels.mixing}
    between: dict[str, dict[str, None]] = {name: {} for name in sources}
    for name in sources:
        reached = [other for other in _reached(model, inputs, once[name], once, expected) if other != name]
        handing_on = [other for other in reached if other in channels.passing]
        for other in reached:
            if other in sources:
                sources[other].append(name)
                between[other].update(dict.fromkeys(handing_on))
    return [Sink(name, tuple(found), tuple(between[name])) for name, found in sources.items() if found]


def _places(module: nn.Module, entering: torch.Tensor) -> int:
    return entering.shape[:-1].numel() if is_linear(module) else len(entering)


def _reached(
    model: nn.Module,
    inputs: Inputs,
    source: nn.Module,
    layers: Mapping[str, nn.Module],
    expected: Mapping[str, torch.Tensor],
) -> list[str]:
    """The layers whose input changes with outputs of ``source``, in these channels and at this place alone."""
    found: list[str] = []
    changed: list[int] = []

    def change(_module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        altered = output.clone()
        rows = _rows(source, altered)
        changed[:] = range(0, rows.shape[-1], max(2, rows.shape[-1] // _CHANNELS))
        place = rows[0] if is_linear(source) else altered[0].movedim(0, -1)
        place[..., changed] = place[..., changed] * -1.5 + 3  # behind a ReLU this differs, whatever it was before
        return altered

    def compare(name: str, entering: torch.Tensor) -> None:
        before = expected[name]
        if not changed or entering.shape != before.shape:
            return
        differs = _rows(layers[name], entering != before)
        if differs.shape[-1] <= max(changed):
            return
        first = 1 if is_linear(source) else len(differs) // len(entering)
        inside = int(differs[:first, changed].sum())
        if inside and inside == int(differs.sum()):
            found.append(name)

    handle = source.register_forward_hook(change)
    try:
        with _watching(layers, compare):
            output_of(model, inputs)
    finally:
        handle.remove()
    return found


def _rows(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Inputs or outputs of a layer as [places, channels], a view if channels are last."""
    wide = tensor if is_linear(module) else tensor.movedim(1, -1)
    return wide.reshape(-1, wide.shape[-1])


@contextmanager
def _watching(layers: Mapping[str, nn.Module], see: Any) -> Iterator[None]:  # noqa: ANN401  called with a name, a tensor
    """Show ``see`` the input of each layer."""

    def hook(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        see(name, args[0] if args else next(iter(kwargs.values())))

    with ExitStack() as hooks:
        for name, module in layers.items():
            handle = module.register_forward_pre_hook(
                lambda _module, args, kwargs, name=name: hook(name, args, kwargs), with_kwargs=True
            )
            hooks.callback(handle.remove)
        yield
