"""Join products that read the same codes."""

from __future__ import annotations

from torch.fx import Graph, Node

from inc_torch.inference._codes import Encode, EncodeInRange
from inc_torch.inference._graph import aten, operation_of, put, replace
from inc_torch.inference._linear import LinearOnCodes
from inc_torch.inference._product import has_residual
from inc_torch.inference._weights import Int8Weights

__all__ = ["merge_linears"]


def merge_linears(graph: Graph) -> None:
    """Make one product of linear layers that read the same codes, such as query, key and value; readers take parts."""
    for codes in [node for node in graph.nodes if isinstance(node.target, Encode | EncodeInRange)]:
        readers = [node for node in graph.nodes if node in codes.users and _is_joinable(node)]
        if len(readers) > 1:
            _join(graph, readers)


def _is_joinable(node: Node) -> bool:
    linear = operation_of(node, LinearOnCodes)
    return linear is not None and linear.activation == "none" and linear.output_grid is None and not has_residual(node)


def _join(graph: Graph, readers: list[Node]) -> None:
    weights = [operation.weights for node in readers if (operation := operation_of(node, LinearOnCodes))]
    modules = [module for part in weights for module in part.modules]
    joined = put(graph, readers[0], LinearOnCodes(Int8Weights(modules)), *readers[0].args)
    begin = 0
    for node, part in zip(readers, weights, strict=True):
        end = begin + len(part.scale)
        replace(node, put(graph, node, aten.slice.Tensor, joined, -1, begin, end, like=node))
        begin = end
