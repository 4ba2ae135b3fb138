"""Say what is computed: no copies, and the rounding of inputs as a node of its own."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import Graph, Node

from inc_torch.inference._codes import Decode, Encode, EncodeInRange, FindRange
from inc_torch.inference._convolution import ConvOnCodes
from inc_torch.inference._graph import arguments, aten, calls, put, replace, value_of
from inc_torch.inference._linear import LinearOnCodes
from inc_torch.inference._opaque import INT8_MODULE, hidden_module
from inc_torch.inference._product import ProductOnCodes
from inc_torch.inference._weights import Int8Weights
from inc_torch.quantizers import Int8Conv2d, Int8DynamicLinear, Int8Linear, Int8Snap, named_scheme

__all__ = ["drop_copies", "say_codes", "say_slices"]

_TOP: Final = 255
_IMAGE_RANK: Final = 4


def drop_copies(graph: Graph) -> None:
    """Take out copies, which protect nothing where no value is ever written to."""
    for node in calls(graph, aten.clone.default, aten.alias.default, aten.detach.default, aten._to_copy.default):
        source, result = value_of(arguments(node)[0]), value_of(node)
        if source is None or result is None or source.dtype != result.dtype or source.device != result.device:
            continue
        if str(source.stride()) == str(result.stride()):
            replace(node, arguments(node)[0])


def say_slices(graph: Graph) -> None:
    """Turn the pieces of a split, which are views of one tensor, into slices."""
    for node in calls(graph, aten.split.Tensor, aten.split_with_sizes.default):
        source, sizes, axis = (*arguments(node), 0)[:3]
        for pick in list(node.users):
            span = _span(pick, sizes, axis)
            if span is not None:
                replace(pick, put(graph, pick, aten.slice.Tensor, source, axis, *span, like=pick))


def _span(pick: Node, sizes: object, axis: int) -> tuple[int, int] | None:
    """Where a piece begins and ends; None if that depends on the input."""
    piece, index = value_of(pick), arguments(pick)[1]
    before = [sizes] * index if isinstance(sizes, int) else list(sizes)[:index] if isinstance(sizes, list) else [None]
    length = None if piece is None else piece.shape[axis]
    known = [size for size in (*before, length) if isinstance(size, int)]
    return (sum(known[:-1]), sum(known)) if len(known) == len(before) + 1 else None


def say_codes(graph: Graph) -> None:
    """Turn calls of int8 modules on float32 into encoding and a product on codes, and snaps into codes and back."""
    for node in calls(graph, INT8_MODULE):
        source, handle, dtype = arguments(node)
        if dtype != torch.float32 or _is_empty(value_of(source)):
            continue
        module = hidden_module(handle)
        if not _is_float32(value_of(source)):
            continue
        if isinstance(module, Int8Snap) and module.grid.top == _TOP:
            codes = put(graph, node, Encode(module.grid, channels_last=True), source, like=source)
            replace(node, put(graph, node, Decode(module.grid), codes, like=node))
        elif (product := _product_of(module, value_of(source))) is not None:
            replace(node, put(graph, node, product, *_encoded(graph, node, product), like=node))


def _encoded(graph: Graph, node: Node, product: ProductOnCodes) -> list[Node]:
    """The codes of what ``node`` reads, and their grid if it has to be found."""
    source = arguments(node)[0]
    if product.weights.grid is not None:
        encode = Encode(product.weights.grid, channels_last=isinstance(product, ConvOnCodes))
        return [put(graph, node, encode, source, like=source)]
    scheme = named_scheme(product.weights.modules[0].scheme)
    found = put(graph, node, FindRange(scheme.symmetric_input), source)
    return [put(graph, node, EncodeInRange(), source, found, like=source), found]


def _is_empty(values: torch.Tensor | None) -> bool:
    return values is not None and any(str(size) == "0" for size in values.shape)


def _is_float32(values: torch.Tensor | None) -> bool:
    return values is not None and values.dtype == torch.float32 and values.device.type == "cpu"


def _product_of(module: object, values: torch.Tensor | None) -> ProductOnCodes | None:
    if values is None or values.dim() == 1 or not isinstance(module, Int8Linear | Int8DynamicLinear | Int8Conv2d):
        return None
    if module.input_factor is not None or named_scheme(module.scheme).top != _TOP:
        return None
    if isinstance(module, Int8Linear | Int8DynamicLinear):
        return LinearOnCodes(Int8Weights([module]))
    if values.dim() != _IMAGE_RANK or module.padding_mode != "zeros":
        return None
    left, right, above, below = module._reversed_padding_repeated_twice
    padding = ((above, below), (left, right))
    geometry: Any = (module.stride, module.dilation)
    stride, dilation = geometry
    return ConvOnCodes(Int8Weights([module]), stride=stride, padding=padding, dilation=dilation, groups=module.groups)
