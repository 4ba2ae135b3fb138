"""Feed-forward blocks of models like transformers, found by the shapes of their layers and by where these stand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, final

from torch import nn
from torch.nn.parameter import UninitializedParameter

from inc_torch.core.names import named_layers

__all__ = ["feed_forward_blocks"]

_MATRIX_RANK: Final = 2
_ATTENTION: Final = 2
"""So few matrices attention has where one makes queries, keys and values: that one, and one for the output."""
_OTHER_LAYERS: Final = (nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)
"""Modules whose weights are no matrices between hidden states, whatever their rank."""


def feed_forward_blocks(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Find the feed-forward blocks of a model, such as the two layers after the attention in each layer of BERT.

    Layers are `torch.nn.Linear`, its subclasses, and the ``Conv1D`` of transformers. Those are siblings that the same
    part of the model is the smallest one to hold together with another matrix. All siblings are a block if

    * their shapes are ``hidden -> inner`` and ``inner -> hidden``, in this order; or with a gate: two layers
      ``hidden -> inner`` and one back, in any order, or one ``hidden -> 2 inner`` and one back, with
      ``inner != hidden``, as attention could look like that otherwise;
    * an element of a `torch.nn.ModuleList` or `torch.nn.Sequential` has them and attention: two matrices or more of
      which a side is ``hidden``, not of convolutions or embeddings, and not in siblings of such shapes. Where there
      are only such siblings, the first are the attention, with all of the same shapes.

    INC 2.6.1 compares how many linear layers the children of a module have with seven patterns; differs in:
    cross-attention is not part of the block after it, attention may have any number of layers, a block is found also
    beside other parts than attention, those outside of lists are not, and the order is that of the model.

    Args:
        model: In float or prepared for quantization. It is not run.

    Returns:
        Of each block the names of its layers, without wrappers; all in the order of the model.

    Example:
        >>> layers = [nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=32) for _ in range(2)]
        >>> feed_forward_blocks(nn.Sequential(*layers, nn.Linear(8, 2)))
        (('0.linear1', '0.linear2'), ('1.linear1', '1.linear2'))
    """
    matrices = dict(_matrices(model))
    siblings = _siblings(matrices)
    lists = {name for name, module in named_layers(model) if isinstance(module, nn.ModuleList | nn.Sequential)}
    candidates: defaultdict[tuple[str, int], list[tuple[str, ...]]] = defaultdict(list)
    for part, names in siblings.items():
        hidden = _hidden_size([matrices[name].sizes for name in names])
        if hidden is not None and (element := _outermost_element(part, lists)) is not None:
            candidates[element, hidden].append(names)
    taken = {name for group in candidates.values() for names in group for name in names}
    beside = Counter(
        (_outermost_element(name, lists), size)
        for name, matrix in matrices.items()
        if name not in taken
        for size in set(matrix.sizes)
    )
    blocks: set[tuple[str, ...]] = set()
    for place, group in candidates.items():
        blocks.update(group if beside[place] >= _ATTENTION else _unlike_the_first(group, matrices))
    return tuple(names for names in siblings.values() if names in blocks)


@final
class _Matrix(NamedTuple):
    """A weight that may take hidden states to others.

    Attributes:
        sizes: Of a layer its numbers of input and output features, of a bare Parameter its shape.
        is_layer: Whether it is the weight of a linear layer, and not a Parameter that a module of any kind multiplies.
    """

    sizes: tuple[int, ...]
    is_layer: bool


def _matrices(model: nn.Module) -> Iterator[tuple[str, _Matrix]]:
    """Yield the name of each linear layer, and of each other Parameter of rank 2 or more, with its sizes."""
    closed: set[str] = set()
    for name, module in named_layers(model):
        if not closed.isdisjoint(_parts(name)):  # what parametrizes a weight
            continue
        features = _features(module)
        if features is not None:
            yield name, _Matrix(features, is_layer=True)
        if features is not None or isinstance(module, _OTHER_LAYERS):
            closed.add(name)
            continue
        for own, parameter in module.named_parameters(name, recurse=False):
            if not isinstance(parameter, UninitializedParameter) and parameter.dim() >= _MATRIX_RANK:
                yield own, _Matrix(tuple(parameter.shape), is_layer=False)


def _features(module: nn.Module) -> tuple[int, int] | None:
    """How many input and output features a linear layer has; None of any other module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if "Conv1D" in {kind.__name__ for kind in type(module).__mro__}:  # of transformers, its weight is [in, out]
        weight = module.get_parameter("weight")
        if weight.dim() == _MATRIX_RANK:
            return weight.shape[0], weight.shape[1]
    return None


def _siblings(matrices: Mapping[str, _Matrix]) -> dict[str, tuple[str, ...]]:
    """Layers by the smallest part of the model that holds them and another matrix."""
    held = Counter(part for name in matrices for part in _parts(name)[:-1])
    siblings: defaultdict[str, list[str]] = defaultdict(list)
    for name, matrix in matrices.items():
        around = [part for part in _parts(name)[:-1] if held[part] > 1]
        if matrix.is_layer and around:
            siblings[around[-1]].append(name)
    return {part: tuple(names) for part, names in siblings.items()}


def _hidden_size(shapes: Sequence[tuple[int, ...]]) -> int | None:
    """The size of what a block of layers of these ``[in, out]`` reads and gives; None if they cannot be a block.

    Example:
        >>> _hidden_size([(4, 16), (16, 4)]), _hidden_size([(4, 12), (4, 4)])
        (4, None)
    """
    for index, (inner, hidden) in enumerate(shapes):
        others = [*shapes[:index], *shapes[index + 1 :]]
        is_plain = index == 1 and others == [(hidden, inner)]
        is_gated = inner != hidden and others in ([(hidden, inner)] * 2, [(hidden, 2 * inner)])
        if is_plain or is_gated:
            return hidden
    return None


def _unlike_the_first(group: Sequence[tuple[str, ...]], matrices: Mapping[str, _Matrix]) -> Iterator[tuple[str, ...]]:
    """Those of a group of siblings that have other shapes than the first."""
    shapes = [[matrices[name].sizes for name in names] for names in group]
    return (names for names, own in zip(group, shapes, strict=True) if own != shapes[0])


def _outermost_element(name: str, lists: Collection[str]) -> str | None:
    """The largest part around ``name``, or of this name, that is an element of a list; None if there is none."""
    return next((inner for outer, inner in pairwise(_parts(name)) if outer in lists), None)


def _parts(name: str) -> list[str]:
    """The names of everything around ``name``, from the model on, and itself at the end.

    Example:
        >>> _parts("encoder.0")
        ['', 'encoder', 'encoder.0']
    """
    steps = name.split(".") if name else []
    return [".".join(steps[:count]) for count in range(len(steps) + 1)]
