"""Batch normalization of codes by running statistics."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch.fx import Graph, Node

from inc_torch.inference._affine import Affine
from inc_torch.inference._codes import Decode
from inc_torch.inference._graph import arguments, aten, is_call, put, replace, target_of, value_of
from inc_torch.inference.passes._epilogues import activation_of
from inc_torch.inference.passes._joining import is_along_channels

__all__ = ["sink_into_batch_norms"]

_IMAGE_RANK: Final = 4


class _BatchNorm(NamedTuple):
    node: Node
    result: Node
    weight: Node | None
    bias: Node | None
    mean: Node
    variance: Node
    epsilon: float


def sink_into_batch_norms(graph: Graph, node: Node, user: Node) -> bool:
    """Let normalizations read the codes: of ``node``, a `Decode`, or those that are concatenated with them."""
    is_concatenation = is_call(user, aten.cat.default) and is_along_channels(user)
    parts = list(arguments(user)[0]) if is_concatenation else [node]
    readers = list(user.users) if is_concatenation else [user]
    if not all(isinstance(part.target, Decode) for part in parts):
        return False
    found = [norm for norm in map(_batch_norm_of, readers) if norm is not None]
    for norm in found:
        _put_affine(graph, norm, parts)
    if found and is_concatenation and not user.users:
        graph.erase_node(user)
    return bool(found)


def _put_affine(graph: Graph, norm: _BatchNorm, parts: list[Node]) -> None:
    replaced = [norm.node, norm.result]
    following = next(iter(norm.result.users), norm.result)
    activation = activation_of(following) if len(norm.result.users) == 1 else None
    if activation is not None:
        replaced.append(following)
    end = replaced.pop()
    grids = tuple(target_of(part).grid for part in parts)
    codes = [arguments(part)[0] for part in parts]
    constants = _factor_and_shift(graph, end, norm)
    replace(end, put(graph, end, Affine(grids, activation or "none"), *codes, *constants, like=end))
    for node in reversed(replaced):
        graph.erase_node(node)


def _factor_and_shift(graph: Graph, before: Node, norm: _BatchNorm) -> tuple[Node, Node]:
    """For each channel; the plan computes them once."""
    variance = put(graph, before, aten.add.Tensor, norm.variance, norm.epsilon, like=norm.variance)
    factor = put(graph, before, aten.rsqrt.default, variance, like=variance)
    if norm.weight is not None:
        factor = put(graph, before, aten.mul.Tensor, factor, norm.weight, like=factor)
    moved = put(graph, before, aten.mul.Tensor, norm.mean, factor, like=factor)
    if norm.bias is None:
        return factor, put(graph, before, aten.neg.default, moved, like=factor)
    return factor, put(graph, before, aten.sub.Tensor, norm.bias, moved, like=factor)


def _batch_norm_of(node: Node) -> _BatchNorm | None:
    """What a node normalizes by, if these are constants and nobody reads statistics of it."""
    statistics = _statistics_of(node)
    if statistics is None or len(node.users) != 1:
        return None
    result = next(iter(node.users))
    constants = statistics[:4]
    value = value_of(result)
    is_image = value is not None and value.dim() == _IMAGE_RANK and value.dtype == torch.float32
    if not is_image or list(arguments(result)[1:]) != [0] or not all(map(_is_constant, constants)):
        return None
    return None if None in constants[2:] else _BatchNorm(node, result, *statistics)


def _statistics_of(node: Node) -> tuple[Any, ...] | None:
    """Weight, bias, mean, variance and epsilon of a batch normalization that is not training."""
    if is_call(node, aten._native_batch_norm_legit_no_training.default):
        return (*arguments(node)[1:5], arguments(node)[6])
    if is_call(node, aten.native_batch_norm.default) and arguments(node)[5] is False:
        return (*arguments(node)[1:5], arguments(node)[7])
    return None


def _is_constant(parameter: object) -> bool:
    if parameter is None:
        return True
    value = value_of(parameter)
    is_held = isinstance(parameter, Node) and parameter.op == "get_attr"
    return is_held and value is not None and value.dtype == torch.float32
