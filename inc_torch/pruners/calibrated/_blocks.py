"""Where the blocks of a model are, and which weights in them can be pruned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from inc_torch.core.errors import ConfigError, ModelError, did_you_mean, listed
from inc_torch.core.names import named_layers, unwrapped
from inc_torch.core.report import Finding
from inc_torch.core.sharding import held, plain_class
from inc_torch.pruners._matrix import is_linear, matrix_of

__all__ = ["Block", "BlockLayer", "Blocks", "block_layers", "find_blocks"]

MATRIX_RANK = 2


@final
@dataclass(frozen=True, slots=True)
class BlockLayer:
    """One layer whose weight can be pruned: an `nn.Linear`, or a ``Conv1D`` of transformers.

    Attributes:
        name: Fully qualified name.
        module: The layer.
    """

    name: str
    module: nn.Module

    def matrix(self) -> torch.Tensor:
        """The weight as [out, in], see `matrix_of`."""
        return matrix_of(self.module)


@final
@dataclass(frozen=True, slots=True)
class Block:
    """One of the modules that run one after the other.

    Attributes:
        name: Fully qualified name.
        module: What the model calls, wrappers included.
        layers: What can be pruned in it; may be none.
    """

    name: str
    module: nn.Module
    layers: tuple[BlockLayer, ...]


@final
@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks in their order, and what was asked for but stays dense, with the reason."""

    blocks: tuple[Block, ...]
    left_dense: tuple[Finding, ...]


def find_blocks(model: nn.Module, layers: Collection[str] | None = None) -> Blocks:
    """Find the blocks: the items of that `nn.ModuleList` whose `nn.Linear` and ``Conv1D`` weights are the most values.

    Of lists with equally many the outermost counts. A layer belongs to the block that it is a module of; names are
    not looked at (INC 2.6.1 takes the first list, and layers by ``.i.`` in their names).

    Args:
        model: Any model, wrapped or not.
        layers: Names of the layers to prune; None is all in the blocks.

    Raises:
        ConfigError: A name in ``layers`` is not one of the model.
        ModelError: There is no list of blocks, or none of its layers can be pruned, or a weight is sharded or empty.
    """
    named = dict(named_layers(model))
    _check_names(layers, named)
    prefix, modules = _heaviest_list(model, named)
    names = {id(module): name for name, module in named.items()}
    owner = _owners(prefix, modules)
    shared = _sharing(named)
    of_block: dict[str, list[BlockLayer]] = defaultdict(list)
    left_dense: list[Finding] = []
    for name, module in named.items():
        if not _is_wanted(name, module, layers):
            continue
        block = owner.get(id(module))
        reason = f"outside of the blocks {prefix!r}" if block is None else _obstacle(name, module, shared)
        if block is not None and reason is None:
            of_block[block].append(BlockLayer(name, module))
        else:
            left_dense.append(Finding(name, note=f"left dense: {reason}"))
    if not of_block:
        raise ModelError(_nothing_left(model, prefix, left_dense))
    blocks = tuple(
        Block(names.get(id(module), name), module, tuple(of_block[name]))
        for name, module in _items(prefix, modules).items()
    )
    return Blocks(blocks, tuple(left_dense))


def block_layers(model: nn.Module) -> list[str]:
    """The names of the layers in the blocks of ``model`` that have a weight of their own, see `find_blocks`."""
    return [layer.name for block in find_blocks(unwrapped(model)).blocks for layer in block.layers]


def _check_names(layers: Collection[str] | None, named: Mapping[str, nn.Module]) -> None:
    unknown = [name for name in layers or () if name not in named]
    if unknown:
        message = (
            f"The layers to prune name {listed(unknown)}, which the model does not have."
            f"{did_you_mean(unknown[0], named)} Take names of model.named_modules()."
        )
        raise ConfigError(message)


def _heaviest_list(model: nn.Module, named: Mapping[str, nn.Module]) -> tuple[str, nn.ModuleList]:
    """Name and module of the list that holds the most; the first of several is the outermost."""
    best: tuple[str, nn.ModuleList] | None = None
    most = 0
    for name, module in named.items():
        if isinstance(module, nn.ModuleList) and not any(_is_container(item) for item in module):
            values = sum(layer.get_parameter("weight").numel() for layer in module.modules() if is_linear(layer))
            if values > most:
                best, most = (name, module), values
    if best is None:
        message = (
            f"{type(model).__name__} has no torch.nn.ModuleList with nn.Linear or Conv1D layers in it, whose items are "
            "the blocks that are pruned one after the other. Keep the blocks of the model in a ModuleList, or prune "
            "it with a type that needs no blocks, such as 'magnitude'."
        )
        raise ModelError(message)
    return best


def _is_container(module: nn.Module) -> bool:
    """Whether ``module`` has no forward of its own."""
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def _items(prefix: str, modules: nn.ModuleList) -> dict[str, nn.Module]:
    return {f"{prefix}.{index}" if prefix else str(index): module for index, module in enumerate(modules)}


def _owners(prefix: str, modules: nn.ModuleList) -> dict[int, str]:
    """The block that each module belongs to: the first that holds it."""
    owner: dict[int, str] = {}
    for name, block in _items(prefix, modules).items():
        for module in block.modules():
            owner.setdefault(id(module), name)
    return owner


def _sharing(named: Mapping[str, nn.Module]) -> dict[int, list[str]]:
    """Names of all modules that hold a weight, by the weight."""
    holders: dict[int, list[str]] = defaultdict(list)
    for name, module in named.items():
        weight = module._parameters.get("weight")
        if weight is not None:
            holders[id(weight)].append(name)
    return holders


def _is_wanted(name: str, module: nn.Module, layers: Collection[str] | None) -> bool:
    if layers is not None:
        return name in layers
    weight = getattr(module, "weight", None)
    kind = plain_class(type(module)).__name__
    return isinstance(weight, torch.Tensor) and weight.dim() >= MATRIX_RANK and ("Linear" in kind or "Conv" in kind)


def _obstacle(name: str, module: nn.Module, shared: Mapping[int, list[str]]) -> str | None:
    """Why the weight of a layer in a block cannot be pruned, or None."""
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other tensors"
    if not is_linear(module):
        return f"{plain_class(type(module)).__name__} is neither nn.Linear nor Conv1D"
    others = [other for other in shared[id(weight)] if other != name]
    if others:
        return f"it shares its weight with {listed(others)}"
    if weight.is_meta or held(weight) is not weight:
        state = "has no values yet" if weight.is_meta else "is sharded"
        message = (
            f"The weight of {name!r} {state}: expected the whole weight on this process. Load the weights and prune "
            "before the model is sharded."
        )
        raise ModelError(message)
    return None


def _nothing_left(model: nn.Module, prefix: str, left_dense: Iterable[Finding]) -> str:
    reasons = "; ".join(f"{finding.module!r}: {finding.note}" for finding in list(left_dense)[:5])
    return (
        f"{type(model).__name__} has no layer to prune in its blocks {prefix!r}: expected one nn.Linear or Conv1D at "
        f"least. {reasons or 'No layer was named'}. Name layers that are in the blocks."
    )
