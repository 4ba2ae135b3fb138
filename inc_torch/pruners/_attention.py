"""Where the heads of a model's attentions are: read from the shapes of its linear layers, not from class names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import nn

from inc_torch.core.names import named_layers
from inc_torch.pruners._matrix import MatrixView, is_linear

__all__ = ["Attention", "HeadChannels", "find_attentions"]

_HEAD_SIZES: Final = ("attention_head_size", "head_dim", "key_value_proj_dim", "head_size", "kv_channels")
HEAD_COUNTS: Final = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_attn_heads")
_PROJECTIONS: Final = 3
"""Of queries, keys and values."""


@final
@dataclass(frozen=True, slots=True)
class HeadChannels:
    """Which channels of a linear layer are those of the heads.

    Attributes:
        layer: Its name.
        sizes: Channels of one head in each run; the runs lie one behind the other and hold all heads in order. A
            layer for queries, keys and values together has three runs.
        of_outputs: Whether the layer makes the heads; else it takes them in.
    """

    layer: str
    sizes: tuple[int, ...]
    of_outputs: bool

    def runs(self, heads: int) -> Iterator[tuple[int, int]]:
        """Where each run begins, and how many channels of a head it has."""
        start = 0
        for size in self.sizes:
            yield start, size
            start += heads * size


@final
@dataclass(frozen=True, slots=True)
class Attention:
    """An attention whose heads can be taken out one by one.

    Where several queries share a key and a value (grouped-query attention), all of them together count as one head.

    Attributes:
        name: Of the module that holds all its layers.
        core: Of the module that keeps the number of heads.
        heads: How many there are.
        size: Channels of one query head.
        members: The layers that make queries, keys and values, and behind them the one that takes the heads in.
    """

    name: str
    core: str
    heads: int
    size: int
    members: tuple[HeadChannels, ...]


def find_attentions(model: nn.Module) -> tuple[list[Attention], dict[str, str]]:
    """Find the attentions of a model.

    A module with a size or a number of heads (``head_dim``, ``num_heads``, ...) is taken for one. Below it are three
    linear layers, for queries, keys and values, or one for all of them, and behind these the output's; if not below it,
    the output's is the next linear layer of the model.

    Args:
        model: Any model, wrapped or not.

    Returns:
        The attentions in the order of the model, and for those that are not understood the name and the reason.
    """
    modules = dict(named_layers(model))
    linears = [name for name, module in modules.items() if is_linear(module)]
    found: list[Attention] = []
    unknown: dict[str, str] = {}
    for name, module in modules.items():
        below = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        own = [layer for layer in below if layer in linears]
        if not own or not _keeps_heads(module):
            continue
        attention = _read(name, module, own, _next_linear(linears, own), modules)
        if isinstance(attention, str):
            unknown[name] = attention
        else:
            found.append(attention)
    return found, unknown


def _keeps_heads(module: nn.Module) -> bool:
    return any(_number(module, names) is not None for names in (_HEAD_SIZES, HEAD_COUNTS))


def _number(module: nn.Module, names: Sequence[str]) -> int | None:
    found = (vars(module).get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _next_linear(linears: Sequence[str], own: Sequence[str]) -> str | None:
    behind = linears[linears.index(own[-1]) + 1 :]
    return behind[0] if behind else None


def _read(
    name: str, module: nn.Module, own: Sequence[str], behind: str | None, modules: Mapping[str, nn.Module]
) -> Attention | str:
    """The attention of a module, or why it cannot be read."""
    layers = list(own) if len(own) % 2 == 0 else [*own, *([behind] if behind else [])]
    *makers, output = layers
    if len(makers) not in (1, _PROJECTIONS):
        return f"it has {len(own)} linear layers: expected those of queries, keys, values and the output"
    width = _shape(modules[output]).channels
    size = _number(module, _HEAD_SIZES) or width // (_number(module, HEAD_COUNTS) or width)
    made = [_shape(modules[layer]).height for layer in makers]
    if len(makers) == 1:
        if made[0] != _PROJECTIONS * width or vars(module).get("split_size") != width or width % size:
            return f"the order of queries, keys and values in {makers[0]!r} is not known"
        heads = width // size
        sizes: list[tuple[int, ...]] = [(size,) * _PROJECTIONS]
    else:
        heads = min(made) // size
        if not heads or any(outputs % (heads * size) for outputs in made) or width != max(made):
            channels = ", ".join(map(str, made))
            return f"its layers make {channels} channels and take {width} in, which are no heads of {size}"
        sizes = [(outputs // heads,) for outputs in made]
    members = [HeadChannels(layer, own_sizes, True) for layer, own_sizes in zip(makers, sizes, strict=True)]
    taken = HeadChannels(output, (width // heads,), False)
    return Attention(_common(layers), name, heads, size, (*members, taken))


def _shape(module: nn.Module) -> MatrixView:
    weight: Any = module.get_parameter("weight")
    return MatrixView.of(module, torch.Size(weight.shape))


def _common(layers: Sequence[str]) -> str:
    """The name of the module that holds all of the layers."""
    parts = zip(*(layer.split(".")[:-1] for layer in layers), strict=False)
    shared: list[str] = []
    for step in parts:
        if len(set(step)) > 1:
            break
        shared.append(step[0])
    return ".".join(shared)
