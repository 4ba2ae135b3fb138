"""Move the border between floats and codes, so that codes go from operation to operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any, Final

import torch
from torch.fx import Graph, Node

from inc_torch.inference._affine import Affine
from inc_torch.inference._attention import Attend
from inc_torch.inference._channels import ScaleChannels
from inc_torch.inference._codes import Decode, Encode, Requantize
from inc_torch.inference._gating import Gate
from inc_torch.inference._graph import (
    LAYOUTS,
    VIEWS,
    arguments,
    aten,
    insert_after,
    is_call,
    operation_of,
    put,
    replace,
    target_of,
    value_of,
)
from inc_torch.inference._normalization import Normalize
from inc_torch.inference._pooling import AverageOfCodes, AveragePoolOfCodes, MaxPoolOfCodes
from inc_torch.inference._product import ProductOnCodes, has_residual, product_of
from inc_torch.inference.passes._joining import climb_over_pieces, joined, parts_of
from inc_torch.inference.passes._norming import sink_into_batch_norms

__all__ = ["move_codes"]


def move_codes(graph: Graph) -> None:
    """Let every `Decode` sink and every `Encode` climb as far as they go."""
    while any(_is_moved(graph, node) for node in graph.nodes):  # starts anew after each move
        pass


def _is_moved(graph: Graph, node: Node) -> bool:
    if isinstance(node.target, Encode):
        return any(step(graph, node) for step in _CLIMBING)
    if not isinstance(node.target, Decode):
        return False
    if node.users:
        return any(step(graph, node, user) for user in node.users for step in _SINKING)
    graph.erase_node(node)
    return True


def _meet(graph: Graph, node: Node) -> bool:  # noqa: ARG001  one of several steps
    source = arguments(node)[0]
    if not isinstance(source.target, Decode) or target_of(source).grid != target_of(node).grid:
        return False
    replace(node, arguments(source)[0])
    return True


def _climb_over_layout(graph: Graph, node: Node) -> bool:
    source = arguments(node)[0]
    if not is_call(source, *LAYOUTS) or len(source.users) > 1:
        return False
    codes = _encoded(graph, arguments(source)[0], target_of(node))
    replace(node, put(graph, node, target_of(source), codes, *arguments(source)[1:], like=node))
    graph.erase_node(source)
    return True


def _change_grid(graph: Graph, node: Node) -> bool:
    source = arguments(node)[0]
    if not isinstance(source.target, Decode) or target_of(source).grid == target_of(node).grid:
        return False
    change = Requantize(target_of(source).grid, target_of(node).grid)
    replace(node, put(graph, node, change, arguments(source)[0], like=node))
    return True


def _climb_over_joint(graph: Graph, node: Node) -> bool:
    source = arguments(node)[0]
    parts = parts_of(source)
    if parts is None or len(source.users) > 1:
        return False
    codes = [_encoded(graph, part, target_of(node)) for part in parts]
    replace(node, joined(graph, node, source, codes))
    graph.erase_node(source)
    return True


def _climb_over_max_pool(graph: Graph, node: Node) -> bool:
    source = arguments(node)[0]
    if source.target is not operator.getitem or len(source.users) > 1 or not _is_max_pool(arguments(source)[0]):
        return False
    pool = arguments(source)[0]
    codes = _encoded(graph, arguments(pool)[0], target_of(node))
    replace(node, put(graph, node, _max_pool_of(pool), codes, like=node))
    graph.erase_node(source)
    if not pool.users:
        graph.erase_node(pool)
    return True


_WRITERS: Final = (ProductOnCodes, Affine, Attend, AverageOfCodes, AveragePoolOfCodes, Gate, ScaleChannels)
"""They write floats, or codes of any grid."""


def _climb_into_producer(graph: Graph, node: Node) -> bool:
    source = arguments(node)[0]
    if not isinstance(source.target, _WRITERS) or len(source.users) > 1:
        return False
    if target_of(source).output_grid is not None:
        return False
    fused = changed(source.target, output_grid=target_of(node).grid)
    replace(node, put(graph, node, fused, *arguments(source), like=node))
    graph.erase_node(source)
    return True


def _climb_into_norm(graph: Graph, node: Node) -> bool:
    source = arguments(node)[0]
    normalize = operation_of(source, Normalize)
    if normalize is None or normalize.grid is not None:
        return False
    has_other_readers = len(source.users) > 1
    fused = changed(normalize, as_float=has_other_readers, grid=target_of(node).grid)
    made = put(graph, source, fused, *arguments(source), like=source)
    if has_other_readers:
        replace(node, insert_after(graph, made, operator.getitem, made, 1, like=source))
        replace(source, insert_after(graph, made, operator.getitem, made, 0, like=source))
    else:
        replace(node, made)
        graph.erase_node(source)
    return True


def _encoded(graph: Graph, source: Node, encode: Encode) -> Node:
    """The codes of ``source``: those that are there already, moved up to where it is made, or new ones."""
    made = insert_after(graph, source, encode, source, like=source)
    for user in source.users:
        if user is not made and user.target == encode:
            replace(user, made)
            break
    return made


def _sink_into_residual(graph: Graph, node: Node, user: Node) -> bool:
    product = product_of(user)
    if product is None or product.residual_grid is not None or not has_residual(user) or user.args[-1] is not node:
        return False
    fused = changed(product, residual_grid=target_of(node).grid)
    replace(user, put(graph, user, fused, *user.args[:-1], node.args[0], like=user))
    return True


def _sink_under_choice(graph: Graph, node: Node, user: Node) -> bool:
    if not is_call(user, *VIEWS):
        return False
    codes = put(graph, user, target_of(user), arguments(node)[0], *arguments(user)[1:], like=user)
    replace(user, put(graph, user, target_of(node), codes, like=user))
    return True


def _sink_under_joint(graph: Graph, node: Node, user: Node) -> bool:
    parts = parts_of(user)
    if parts is None:
        return False
    if any(not isinstance(part.target, Decode) or target_of(part).grid != target_of(node).grid for part in parts):
        return False
    codes = joined(graph, user, user, [arguments(part)[0] for part in parts])
    replace(user, put(graph, user, target_of(node), codes, like=user))
    return True


def _sink_under_max_pool(graph: Graph, node: Node, user: Node) -> bool:
    if not _is_max_pool(user):
        return False
    for pick in list(user.users):
        codes = put(graph, pick, _max_pool_of(user), arguments(node)[0], like=pick)
        replace(pick, put(graph, pick, target_of(node), codes, like=pick))
    graph.erase_node(user)
    return True


def _sink_into_average(graph: Graph, node: Node, user: Node) -> bool:
    keeps_dimensions = _average_of(user)
    if keeps_dimensions is None:
        return False
    average = AverageOfCodes(target_of(node).grid, keeps_dimensions)
    replace(user, put(graph, user, average, arguments(node)[0], like=user))
    return True


def _sink_into_average_pool(graph: Graph, node: Node, user: Node) -> bool:
    if not is_call(user, aten.avg_pool2d.default):
        return False
    given = arguments(user)[1:]
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor = (*given, *_AVERAGE_DEFAULTS[len(given) :])
    value = value_of(user)
    if ceil_mode or divisor is not None or value is None or value.dim() != _IMAGE_RANK:
        return False
    window = (_pair(kernel_size), _pair(stride or kernel_size), _pair(padding))
    pool = AveragePoolOfCodes(target_of(node).grid, *window, bool(count_include_pad))
    replace(user, put(graph, user, pool, arguments(node)[0], like=user))
    return True


_AVERAGE_DEFAULTS: Final[tuple[Any, ...]] = (None, (), 0, False, True, None)
"""Kernel size, stride, padding, whether sizes are rounded up, whether the border counts, the divisor."""


def _sink_into_scaling(graph: Graph, node: Node, user: Node) -> bool:
    if not is_call(user, aten.mul.Tensor):
        return False
    others = [operand for operand in arguments(user) if operand is not node]
    image, factor = value_of(node), value_of(others[0]) if others else None
    if image is None or factor is None or image.dim() != _IMAGE_RANK or factor.dtype != torch.float32:
        return False
    if str((*image.shape[:2], 1, 1)) != str(tuple(factor.shape)):
        return False
    scale = put(graph, user, ScaleChannels(target_of(node).grid), arguments(node)[0], others[0], like=user)
    replace(user, scale)
    return True


def _is_max_pool(node: object) -> bool:
    """Whether a node is a max pool whose indices nobody reads."""
    return (
        isinstance(node, Node)
        and is_call(node, aten.max_pool2d_with_indices.default)
        and all(arguments(user)[1] == 0 for user in node.users)
    )


def _max_pool_of(node: Node) -> MaxPoolOfCodes:
    kernel_size, stride, padding, dilation, ceil_mode = (
        *arguments(node)[1:],
        *_POOL_DEFAULTS[len(arguments(node)) - 2 :],
    )
    return MaxPoolOfCodes(
        _pair(kernel_size), _pair(stride or kernel_size), _pair(padding), _pair(dilation), bool(ceil_mode)
    )


_POOL_DEFAULTS: Final[tuple[Any, ...]] = ((), 0, 1, False)
"""Stride, padding, dilation, whether sizes are rounded up."""


def _pair(value: Any) -> tuple[int, int]:  # noqa: ANN401  one int or two, in a list
    first, *rest = [value] if isinstance(value, int) else value
    return first, rest[0] if rest else first


def _average_of(node: Node) -> bool | None:
    """Whether a mean over height and width keeps these dimensions; None if the node is something else."""
    if is_call(node, aten._adaptive_avg_pool2d.default) and list(arguments(node)[1]) == [1, 1]:
        return True
    if not is_call(node, aten.mean.dim) or node.kwargs:
        return None
    values, axes, keeps = (*arguments(node), None, False)[:3]
    value = value_of(values)
    if value is None or value.dim() != _IMAGE_RANK or axes is None:
        return None
    return bool(keeps) if sorted(axis % _IMAGE_RANK for axis in axes) == [2, 3] else None


_IMAGE_RANK: Final = 4
_CLIMBING: Final[tuple[Callable[[Graph, Node], bool], ...]] = (
    _meet,
    _change_grid,
    _climb_over_layout,
    _climb_over_joint,
    climb_over_pieces,
    _climb_over_max_pool,
    _climb_into_norm,
    _climb_into_producer,
)
_SINKING: Final[tuple[Callable[[Graph, Node, Node], bool], ...]] = (
    _sink_into_residual,
    _sink_under_choice,
    sink_into_batch_norms,
    _sink_under_joint,
    _sink_under_max_pool,
    _sink_into_average,
    _sink_into_average_pool,
    _sink_into_scaling,
)
