"""Find attention, norms and gates, which can write codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace as changed
from typing import Any, Final

import torch
from torch.fx import Graph, Node

from inc_torch.inference._attention import Attend
from inc_torch.inference._gating import Gate
from inc_torch.inference._graph import (
    VIEWS,
    arguments,
    aten,
    calls,
    is_call,
    operation_of,
    put,
    replace,
    shape_text,
    value_of,
)
from inc_torch.inference._linear import LinearOnCodes
from inc_torch.inference._normalization import Normalize
from inc_torch.inference._product import has_residual
from inc_torch.inference._rotation import Rotate

_HEADS_RANK: Final = 4
_HEADS_AXIS: Final = 1

__all__ = ["find_attention", "find_gates", "find_norms", "find_rotations", "halve_heads"]


def find_attention(graph: Graph) -> None:
    """``scaled_dot_product_attention`` on the CPU, as torch decomposes it."""
    for node in calls(graph, aten._scaled_dot_product_flash_attention_for_cpu.default):
        query, key, value, *rest = arguments(node)
        dropout, causal = (*rest, 0.0, False)[:2]
        is_float = all(_is_float32(operand) for operand in (query, key, value))
        if dropout or not is_float or any(arguments(user)[1] != 0 for user in node.users):
            continue
        options: dict[str, Any] = dict(node.kwargs)
        key, value = _grouped(key), _grouped(value)
        operation = Attend(options.get("scale"), bool(causal))
        masks = [mask for mask in (options.get("attn_mask"),) if mask is not None]
        attend = put(graph, node, operation, query, key, value, *masks)
        for user in list(node.users):
            replace(user, put(graph, user, aten.transpose.int, attend, 1, 2, like=user))
        graph.erase_node(node)  # it may have dropout, so elimination of dead code would leave it


def _grouped(node: Node) -> Node:
    """The heads that are repeated for several query heads each, which `Attend` does not need, or ``node`` itself."""
    copies = arguments(node)[0] if is_call(node, aten._unsafe_view.default, aten.view.default) else None
    spread = arguments(copies)[0] if is_call(copies, aten.clone.default) else copies
    added = arguments(spread)[0] if is_call(spread, aten.expand.default) else None
    if not is_call(added, aten.unsqueeze.default) or arguments(added)[1] != _HEADS_AXIS + 1:
        return node
    heads: Node = arguments(added)[0]
    before, after = value_of(heads), value_of(node)
    if before is None or after is None or before.dim() != _HEADS_RANK or after.dim() != _HEADS_RANK:
        return node
    is_repeat = all(str(before.shape[axis]) == str(after.shape[axis]) for axis in (0, 2, 3))
    return heads if is_repeat else node


def halve_heads(graph: Graph) -> None:
    """Let products that only attention reads write bfloat16, to which it would round them."""
    for node in graph.nodes:
        product = operation_of(node, LinearOnCodes)
        if product is not None and product.output_grid is None and all(map(_is_head, _readers(node))):
            node.target = changed(product, output_dtype=torch.bfloat16)


def _readers(node: Node) -> Iterator[tuple[Node, Node]]:
    """Who reads a value, and through which view."""
    for user in node.users:
        if is_call(user, *VIEWS):
            yield from _readers(user)
        else:
            yield user, node


def _is_head(reader: tuple[Node, Node]) -> bool:
    user, view = reader
    attend = operation_of(user, Attend)
    return attend is not None and view in arguments(user)[:3] and view not in arguments(user)[3:]


def find_norms(graph: Graph) -> None:
    """Layer norms over the last dimension."""
    for node in calls(graph, aten.native_layer_norm.default):
        values, shape, weight, bias, epsilon = arguments(node)
        if len(shape) != 1 or not _is_float32(values) or any(arguments(user)[1] != 0 for user in node.users):
            continue
        if weight is None and bias is not None:
            continue  # an operation takes the first of both for the weight
        affine = [parameter for parameter in (weight, bias) if parameter is not None]
        normalize = put(graph, node, Normalize(epsilon), values, *affine, like=values)
        for user in list(node.users):
            replace(user, normalize)
    for node in calls(graph, aten.mul.Tensor):
        for weight, scaled in (arguments(node), arguments(node)[::-1]):
            found = _root_mean_square(scaled)
            if found is not None and _is_along_last(weight, found[0]) and all(map(_is_float32, (weight, found[0]))):
                values, epsilon = found
                operation = Normalize(epsilon, root_mean_square=True)
                replace(node, put(graph, node, operation, values, weight, like=node))
                break


def _root_mean_square(node: object) -> tuple[Node, float] | None:
    """``x`` and ``epsilon`` if ``node`` is ``x * rsqrt(mean(x ** 2) + epsilon)``."""
    if not is_call(node, aten.mul.Tensor):
        return None
    values, root = arguments(node)
    if not is_call(root, aten.rsqrt.default) or not is_call(arguments(root)[0], aten.add.Tensor):
        return None
    if arguments(root)[0].kwargs:
        return None
    mean, epsilon = arguments(arguments(root)[0])
    if not is_call(mean, aten.mean.dim) or list(arguments(mean)[1:]) != [[-1], True] or not isinstance(epsilon, float):
        return None
    square = arguments(mean)[0]
    is_square = is_call(square, aten.pow.Tensor_Scalar) and list(arguments(square)) == [values, 2]
    return (values, epsilon) if is_square and not mean.kwargs else None


def _is_along_last(weight: object, values: Node) -> bool:
    found, along = value_of(weight), value_of(values)
    return found is not None and along is not None and str(tuple(found.shape)) == str(tuple(along.shape[-1:]))


def find_rotations(graph: Graph) -> None:
    """Rotary embeddings whose pairs lie half a head apart."""
    for node in calls(graph, aten.add.Tensor):
        for plain, turned in (arguments(node), arguments(node)[::-1]):
            found = _rotation(plain, turned)
            if found is None or node.kwargs or shape_text(node) != shape_text(found[0]):
                continue
            if all(map(_is_float32, found)):
                replace(node, put(graph, node, Rotate(), *found, like=node))
                break


def _rotation(plain: object, turned: object) -> tuple[Node, Node, Node] | None:
    """``x``, ``cosine`` and ``sine`` if both summands are ``x * cosine`` and ``cat(-second, first) * sine``."""
    if not is_call(plain, aten.mul.Tensor) or not is_call(turned, aten.mul.Tensor):
        return None
    (values, cosine), (halves, sine) = arguments(plain), arguments(turned)
    value = value_of(values)
    if not is_call(halves, aten.cat.default) or list(arguments(halves)[1:]) != [-1] or not _is_float32(values):
        return None
    if value is None or value.dim() != _HEADS_RANK or not isinstance(value.shape[-1], int):
        return None
    negative, *rest = arguments(halves)[0]
    if not is_call(negative, aten.neg.default) or len(rest) != 1:
        return None
    size = value.shape[-1]
    second, first = arguments(negative)[0], rest[0]
    if not is_call(second, aten.slice.Tensor) or not is_call(first, aten.slice.Tensor):
        return None
    expected = [(values, 3, size // 2, size), (values, 3, 0, size // 2)]
    found = [(*arguments(part)[:3], min(arguments(part)[3], size)) for part in (second, first)]
    return (values, cosine, sine) if found == expected else None


def find_gates(graph: Graph) -> None:
    """``activation(product) * product``, both of the same codes."""
    for node in calls(graph, aten.mul.Tensor):
        for gate, values in (arguments(node), arguments(node)[::-1]):
            gated, plain = operation_of(gate, LinearOnCodes), operation_of(values, LinearOnCodes)
            if gated is None or plain is None or arguments(gate) != arguments(values) or has_residual(gate):
                continue
            if gated.activation == "none" or plain.activation != "none" or len(gate.users) > 1 or len(values.users) > 1:
                continue
            if shape_text(gate) != shape_text(values):
                continue
            before = put(graph, gate, changed(gated, activation="none"), *arguments(gate), like=gate)
            replace(node, put(graph, node, Gate(gated.activation), before, values, like=node))
            break


def _is_float32(node: object) -> bool:
    value = value_of(node)
    return value is not None and value.dtype == torch.float32 and value.device.type == "cpu"
