"""Layers whose weights FSDP2 (``torch.distributed.fsdp.fully_shard``) has cut into shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn, final

import torch

from inc_torch.core.errors import ModelError
from inc_torch.core.ranks import Ranks
from inc_torch.core.sharding import held
from inc_torch.pruners._base import Ranking, Reduction
from inc_torch.pruners._exchange import Exchange
from inc_torch.pruners._layers import Layer
from inc_torch.pruners._parts import Part
from inc_torch.pruners._seam import Seam
from inc_torch.pruners._sharded_ranking import ShardedRanking
from inc_torch.pruners._weights import is_sharded

__all__ = ["ShardedLayout"]


@final
class ShardedLayout:
    """Every process holds a shard of each weight, and scores and masks of the units that it touches.

    Weights that are not sharded are copies that every process holds; the first one counts them.

    Args:
        layers: The layers.
        weights: Their weights, of which at least one is sharded.

    Raises:
        ModelError: A weight is spread in another way than by its first axis over one dimension of a mesh.
    """

    def __init__(self, layers: Sequence[Layer], weights: Sequence[torch.Tensor]) -> None:
        mesh, dimension = _common_mesh(layers, weights)
        self._exchange = Exchange(Ranks(mesh.get_group(dimension)), torch.device(mesh.device_type))
        self._replicas = [Ranks(mesh.get_group(other)) for other in range(mesh.ndim) if other != dimension]
        rank, count = self._exchange.ranks.index, self._exchange.ranks.count
        self.parts = [_part(layer, weight, rank, count) for layer, weight in zip(layers, weights, strict=True)]
        device = held(weights[0]).device
        entries = [math.prod(part.whole.score_shape) for part in self.parts]
        units = [part.whole.units for part in self.parts]
        self._scores = Seam(self.parts, entries, self._exchange, device)
        self._units = self._scores if entries == units else Seam(self.parts, units, self._exchange, device)

    def join_scores_(self, scores: torch.Tensor, flags: Sequence[bool], reduction: Reduction) -> Sequence[bool]:
        """See `Layout`."""
        return self._scores.add_(scores, flags, greatest=reduction == "max")

    def has_positive(self, scores: torch.Tensor) -> bool:
        """See `Layout`."""
        own = scores.amax() if scores.numel() else scores.new_zeros(())
        return float(self._exchange.maximum(own)) > 0

    def ranking(self, scores: torch.Tensor, *, of_entries: bool = False) -> Ranking:
        """See `Layout`."""
        sizes = [math.prod(part.whole.score_shape) if of_entries else part.whole.units for part in self.parts]
        seam = self._scores if of_entries else self._units
        return ShardedRanking(scores, self.parts, sizes, self._exchange, seam)

    def counts(self, masks: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
        """See `Layout`."""
        counted = [(part, _counted(part, mask)) for part, mask in zip(self.parts, masks, strict=True)]
        own = [(part.grid.pruned_units(mask), int((~mask).sum())) for part, mask in counted]
        return [(units, entries) for units, entries in self._exchange.sum(torch.tensor(own)).tolist()]

    def require_equal(self, masks: Sequence[torch.Tensor]) -> None:
        """See `Layout`; shards are the same by construction, but not their replicas, nor copies beside them."""
        on_device = [mask.to(self._exchange.device) for mask in masks]
        for ranks in self._replicas:
            ranks.require_equal("Pruning masks", on_device)
        copies = [mask for part, mask in zip(self.parts, on_device, strict=True) if part.is_copy]
        self._exchange.ranks.require_equal("Pruning masks of layers that are not sharded", copies)

    def gather(self, part: Part, stored: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """See `Layout`."""
        if part.is_copy:
            return stored.clone()
        own = part.placed(stored, math.prod(shape))[:, part.begun_before :]
        lengths = self._exchange.gather(torch.tensor([own.shape[1]])).flatten().tolist()
        filled = own.new_zeros(own.shape[0], max(lengths), own.shape[2])
        filled[:, : own.shape[1]] = own
        gathered = self._exchange.gather(filled)
        return torch.cat([piece[:, :length] for piece, length in zip(gathered, lengths, strict=True)], 1).reshape(shape)


def _counted(part: Part, mask: torch.Tensor) -> torch.Tensor:
    """Those entries of a local mask that this process counts."""
    placed = part.placed(mask, math.prod(part.whole.mask_shape))
    return placed[:, part.begun_before :] if part.is_counted else placed[:0]


def _common_mesh(layers: Sequence[Layer], weights: Sequence[Any]) -> tuple[Any, int]:
    """The ``DeviceMesh`` that all sharded weights lie on, and the dimension of it that cuts them."""
    found: list[tuple[Any, int]] = []
    for layer, weight in zip(layers, weights, strict=True):
        if not is_sharded(weight):
            continue
        cuts = [(dim, place) for dim, place in enumerate(weight.placements) if not place.is_replicate()]
        dimension, place = cuts[0]
        # A strided shard is a kind of shard too: FSDP2 on top of tensor parallelism.
        if len(cuts) > 1 or type(place).__name__ != "Shard" or place.dim != 0:
            _refuse(layer, weight, "only a weight that is cut once, by its first axis, can be pruned")
        mesh = weight.device_mesh
        if mesh.get_coordinate()[dimension] != Ranks(mesh.get_group(dimension)).index:
            _refuse(layer, weight, "the mesh does not have its ranks in ascending order")
        found.append((mesh, dimension))
        if found[-1] != found[0]:
            _refuse(layer, weight, f"other layers of the same pruner lie on {found[0][0]}")
    return found[0]


def _part(layer: Layer, weight: torch.Tensor, rank: int, ranks: int) -> Part:
    if not is_sharded(weight):
        return Part.of_copy(layer.grid, rank)
    part = Part.of_shard(layer.grid, weight.shape[0], rank, ranks)
    if part is None:
        _refuse(layer, weight, "the units of the pattern span kernel positions, and so do not lie along that axis")
    if part.length != len(held(weight)):
        _refuse(layer, weight, f"rank {rank} has {len(held(weight))} rows, where torch.chunk gives {part.length}")
    return part


def _refuse(layer: Layer, weight: Any, reason: str) -> NoReturn:  # noqa: ANN401  a DTensor
    message = (
        f"Layer {layer.name!r} cannot be pruned with its weight of shape {tuple(weight.shape)} spread as "
        f"{weight.placements} over {weight.device_mesh}: {reason}. Shard the model with "
        "torch.distributed.fsdp.fully_shard alone, without shard_placement_fn and tensor parallelism, on one mesh; or "
        "take the layer out with excluded_op_names."
    )
    raise ModelError(message)
