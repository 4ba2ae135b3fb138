"""The weights under pruning: found by name, whole or as shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import ModelError, StateError
from inc_torch.core.merged import merged_over
from inc_torch.core.names import named_layers
from inc_torch.core.sharding import held, plain_class
from inc_torch.pruners._layers import Layer

__all__ = ["Weights", "is_sharded"]


def is_sharded(weight: torch.Tensor) -> bool:
    """Whether ``weight`` is a ``DTensor`` of which processes hold different parts."""
    return not all(place.is_replicate() for place in getattr(weight, "placements", ()))


@final
class Weights:
    """The modules of layers, and their weights, looked up afresh each time because wrappers exchange Parameters.

    Args:
        model: The model, perhaps wrapped or sharded.
        layers: Layers that were selected in it before.

    Raises:
        ModelError: A layer is gone.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        named = dict(named_layers(model))
        missing = [layer.name for layer in layers if layer.name not in named]
        if missing:
            message = (
                f"{type(model).__name__} has no layer {missing[0]!r} any more, which is to be pruned. Call "
                "prepare_compression after layers are removed or renamed."
            )
            raise ModelError(message)
        self._modules = {layer.name: named[layer.name] for layer in layers}
        self._fsdp: list[Any] = [module for module in model.modules() if _is_fsdp(module)]
        self._sharded: set[str] = set()
        self._reshard()
        self._sharded.update(layer.name for layer in layers if is_sharded(self.of(layer)))

    def of(self, layer: Layer) -> torch.Tensor:
        """The Parameter of ``layer``; a ``DTensor`` if it is sharded.

        Raises:
            StateError: It is none any more, or not sharded any more.
        """
        weight = self._found(layer)
        if layer.name in self._sharded and not is_sharded(weight):
            self._reshard()
            weight = self._found(layer)
            if not is_sharded(weight):
                message = (
                    f"The weight of layer {layer.name!r} was sharded when pruning began and is not any more. Shard the "
                    "model before on_train_begin, and leave it so until on_train_end."
                )
                raise StateError(message)
        return weight

    def here(self, layer: Layer) -> torch.Tensor:
        """What this process holds of the weight of ``layer``."""
        return held(self.of(layer))

    def _found(self, layer: Layer) -> torch.Tensor:
        weight = self._modules[layer.name].weight
        if not isinstance(weight, torch.Tensor):
            message = f"Layer {layer.name!r} lost its weight Parameter during pruning; it holds {type(weight)!r} now."
            raise StateError(message)
        return weight

    def used(self, layer: Layer) -> torch.Tensor:
        """What this process holds of the weight that ``layer`` computes with: its own, or with adapters added."""
        merged = merged_over(self._modules[layer.name])
        return self.here(layer) if merged is None else merged.merged_weight()

    def gradient(self, layer: Layer) -> torch.Tensor | None:
        """The gradient of `used`, if there is one."""
        merged = merged_over(self._modules[layer.name])
        gradient = self.of(layer).grad if merged is None else merged.merged_gradient
        return None if gradient is None else held(gradient)

    def _reshard(self) -> None:
        """Have FSDP put shards in place of weights that it left gathered, after a forward without a backward."""
        for module in filter(_is_fsdp, self._fsdp):
            module.reshard()


def _is_fsdp(module: nn.Module) -> bool:
    return plain_class(type(module)) is not type(module)
