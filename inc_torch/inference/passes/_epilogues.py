"""Let products on codes add a residual and apply an activation themselves."""

from __future__ import annotations

from dataclasses import replace as changed
from operator import itemgetter
from typing import Final

import torch
from torch.fx import Graph, Node

from inc_torch.inference._graph import (
    arguments,
    aten,
    calls,
    is_call,
    put,
    replace,
    shape_text,
    target_of,
    value_of,
)
from inc_torch.inference._product import has_residual, product_of

__all__ = ["activation_of", "fuse_activations", "fuse_residuals"]


def fuse_residuals(graph: Graph) -> None:
    """``product + residual``, where nothing else reads the product."""
    for node in calls(graph, aten.add.Tensor):
        if node.kwargs or any(shape_text(operand) != shape_text(node) for operand in arguments(node)):
            continue
        candidates = [pair for pair in (arguments(node), arguments(node)[::-1]) if _takes_residual(*pair)]
        if candidates:
            product, residual = max(candidates, key=itemgetter(0))  # the later one
            replace(node, put(graph, node, product.target, *arguments(product), residual, like=node))


def _takes_residual(product: Node, residual: Node) -> bool:
    value = value_of(residual)
    return _is_bare(product) and not has_residual(product) and value is not None and value.dtype == torch.float32


def fuse_activations(graph: Graph) -> None:
    """``activation(product)``, where nothing else reads the product."""
    for node in list(graph.nodes):
        activation = activation_of(node)
        if activation is not None and _is_bare(arguments(node)[0]):
            product = arguments(node)[0]
            fused = changed(product.target, activation=activation)
            replace(node, put(graph, node, fused, *arguments(product), like=node))


def _is_bare(node: object) -> bool:
    """Whether nothing was done to a product yet, and one node reads it."""
    product = product_of(node)
    return (
        isinstance(node, Node)
        and product is not None
        and product.activation == "none"
        and product.output_grid is None
        and len(node.users) == 1
    )


_ACTIVATIONS: Final = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
}


def activation_of(node: Node) -> str | None:
    """The name of the activation that a node computes, if it does."""
    if is_call(node, aten.gelu.default):
        return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu"
    if is_call(node, aten.hardtanh.default, aten.clamp.default) and list(arguments(node)[1:]) == [0, 6]:
        return "relu6"
    return _ACTIVATIONS.get(target_of(node)) if node.op == "call_function" else None
