"""Channels that can be taken out of a chain of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from inc_torch.core.batches import Inputs
from inc_torch.core.errors import ModelError
from inc_torch.core.names import unwrapped
from inc_torch.pruners._matrix import MatrixView
from inc_torch.pruners.slimming._channels import Channels, Sink, find_sinks
from inc_torch.pruners.slimming._removal import keep_channels, keep_passing, undone, with_equal_outputs

__all__ = ["Cut", "removable_sinks"]


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """Channels to be taken out of a layer's inputs, and of the outputs of those that make them.

    Attributes:
        sink: The layer, and those others.
        dead: Indices of the channels, ascending.
        width: How many there were.
    """

    sink: Sink
    dead: tuple[int, ...]
    width: int

    def carry_out(self, channels: Channels) -> None:
        """Exchange the weights."""
        gone = set(self.dead)
        kept = torch.tensor([channel for channel in range(self.width) if channel not in gone])
        keep_channels(channels.mixing[self.sink.name], kept, of_outputs=False)
        for name in self.sink.sources:
            keep_channels(channels.mixing[name], kept, of_outputs=True)
        for name in self.sink.between:
            keep_passing(channels.passing[name], kept, self.width)


def removable_sinks(model: nn.Module, channels: Channels, inputs: Inputs) -> list[Sink]:
    """Those layers whose inputs nobody else looks at, such as a residual connection: found by taking one out.

    Args:
        model: Any model, which is as it was afterwards.
        channels: Its layers.
        inputs: What it is run on.

    Raises:
        ModelError: ``inputs`` hold a single place.
    """
    return [sink for sink in find_sinks(model, inputs) if _is_removable(unwrapped(model), sink, channels, inputs)]


def _is_removable(model: nn.Module, sink: Sink, channels: Channels, inputs: Inputs) -> bool:
    """Whether the model computes the same with a dead channel and without it."""
    layer = channels.mixing[sink.name]
    weight = layer.get_parameter("weight")
    view = MatrixView.of(layer, weight.shape)
    with undone(model):
        without_first = weight.detach().clone()
        view.ordered(without_first)[..., 0] = 0
        layer.weight = nn.Parameter(without_first)
        try:
            with_equal_outputs(model, inputs, lambda: Cut(sink, (0,), view.channels).carry_out(channels))
        except (ModelError, RuntimeError, ValueError, IndexError):
            return False
    return True
