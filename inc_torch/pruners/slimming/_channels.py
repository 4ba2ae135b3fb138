"""Which linear layers make the inputs of which, channel by channel: found by changing one and watching the others.

    source ──► activation, dropout, product with another source ──► sink

Of each linear layer some of the outputs are changed, at one place of one batch. Where another layer's input
then differs in these channels at this place and nowhere else, nothing between the two mixes channels or places, and a
channel that the other layer does not look at can be taken out of both. No class and no name of a model is known here.
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

__all__ = ["Sink", "find_sinks", "linear_layers"]

_CHANNELS = 16
"""About how many are changed, none of them neighbours of another."""
_FEWEST_PLACES = 2
"""Tokens or samples: with one, what mixes them would not be seen."""


@final
@dataclass(frozen=True, slots=True)
class Sink:
    """A linear layer, and those that make its inputs channel by channel.

    Attributes:
        name: Of the layer.
        sources: Names of the others, in the order in which they run.
    """

    name: str
    sources: tuple[str, ...]


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The `nn.Linear` and ``Conv1D`` layers with a float weight of their own, by name."""
    holders = Counter(id(module._parameters.get("weight")) for _, module in named_layers(model))
    return {
        name: module
        for name, module in named_layers(model)
        if is_linear(module) and holders[id(module._parameters["weight"])] == 1
    }


def find_sinks(model: nn.Module, inputs: Inputs) -> list[Sink]:
    """Find all layers whose inputs are made channel by channel by other layers.

    Each layer costs a forward.

    Args:
        model: Any model, wrapped or not.
        inputs: What it is run on: of two places (tokens, samples) or more.

    Raises:
        ModelError: ``inputs`` hold a single place.
    """
    layers = linear_layers(unwrapped(model))
    expected: dict[str, torch.Tensor] = {}
    calls: Counter[str] = Counter()

    def note(name: str, entering: torch.Tensor) -> None:
        calls[name] += 1
        expected[name] = entering.clone()

    with _watching(layers, note):
        output_of(model, inputs)
    once = {name: layers[name] for name in expected if calls[name] == 1}
    if any(entering.shape[:-1].numel() < _FEWEST_PLACES for entering in expected.values()):
        message = (
            f"{type(unwrapped(model)).__name__} was run on a single token or sample: expected two or more, or layers "
            "that mix them cannot be told from those that do not. Give a batch of more."
        )
        raise ModelError(message)
    sources: dict[str, list[str]] = {name: [] for name in once}
    for name, module in once.items():
        for other in _reached(model, inputs, module, once, expected):
            if other != name:
                sources[other].append(name)
    return [Sink(name, tuple(found)) for name, found in sources.items() if found]


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
        width = output.shape[-1]
        changed[:] = range(0, width, max(2, width // _CHANNELS))
        altered = output.clone()
        place = altered.view(-1, width)[0]
        place[changed] = place[changed] * -1.5 + 3  # behind a ReLU this differs, whatever it was before
        return altered

    def compare(name: str, entering: torch.Tensor) -> None:
        before = expected[name]
        if not changed or entering.shape != before.shape:
            return
        differs = (entering != before).reshape(-1, entering.shape[-1])
        inside = differs[0, changed] if differs.shape[1] > max(changed) else differs[0, :0]
        if inside.any() and int(inside.sum()) == int(differs.sum()):
            found.append(name)

    handle = source.register_forward_hook(change)
    try:
        with _watching(layers, compare):
            output_of(model, inputs)
    finally:
        handle.remove()
    return found


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
