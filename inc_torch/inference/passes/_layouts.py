"""Views and results: how they lie, and that no two of them share memory that did not before."""

from __future__ import annotations

from typing import Any, Final

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from inc_torch.inference._graph import arguments, aten, calls, put, shown_by, value_of
from inc_torch.inference._operations import Operation

__all__ = ["keep_apart", "keep_layouts", "owners_of_results", "relax_views"]

_IMAGE_RANK: Final = 4


def keep_layouts(graph: Graph) -> None:
    """Copy what leaves the graph in another layout where the caller gets dense rows, and may call ``.view()``."""
    output = _output_of(graph)
    for node in output.all_input_nodes:
        value = value_of(node)
        if _may_move(node) and value is not None and value.is_contiguous():
            output.replace_input_with(node, put(graph, output, aten.contiguous.default, node, like=node))


def _may_move(node: Node) -> bool:
    """Whether a value may lie in another way than it was recorded."""
    value = value_of(node)
    if isinstance(node.target, Operation):
        return value is not None and value.dim() == _IMAGE_RANK
    return node.op == "call_function"


def relax_views(graph: Graph) -> None:
    """Let a view copy where values no longer lie as they did: images are channels last."""
    for node in calls(graph, aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default


def owners_of_results(graph: Graph) -> list[object]:
    """For each result, something that is equal for those that share memory; None if only this result shows it."""
    found: list[Node] = []
    map_arg(_output_of(graph).args, lambda node: found.append(shown_by(node)))
    return [node if node.op == "placeholder" or found.count(node) > 1 else None for node in found]


def keep_apart(graph: Graph, owners: list[object]) -> None:
    """Copy results that share memory with inputs or with results before them though they did not.

    Args:
        graph: Rewritten.
        owners: What `owners_of_results` found before.
    """
    output = _output_of(graph)
    before = iter(owners)
    given: dict[Node, set[object]] = {}

    def apart(node: Any) -> Any:  # noqa: ANN401  a node
        owner, shown = next(before), shown_by(node)
        others = given.setdefault(shown, {shown} if shown.op == "placeholder" else set())
        if others and (owner is None or owner not in others):
            return put(graph, output, aten.clone.default, node, like=node)
        others.add(owner)
        return node

    output.args = map_arg(arguments(output), apart)


def _output_of(graph: Graph) -> Node:
    found: Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return found
