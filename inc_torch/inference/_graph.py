"""What the passes over a graph share."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import torch
from torch.fx import Graph, Node

from inc_torch.inference._operations import Operation

__all__ = [
    "LAYOUTS",
    "VIEWS",
    "arguments",
    "calls",
    "insert_after",
    "is_call",
    "is_pure",
    "merge_equal",
    "operation_of",
    "put",
    "replace",
    "shape_text",
    "shown_by",
    "target_of",
    "value_of",
]

aten: Final = torch.ops.aten

LAYOUTS: Final = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.transpose.int,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
)
"""They rename positions and keep all values."""

VIEWS: Final = (*LAYOUTS, aten.slice.Tensor, aten.select.int, aten.expand.default)
"""They give values as they are, maybe not all of them."""

Kind = TypeVar("Kind", bound=Operation)


def is_call(value: object, *targets: object) -> bool:
    """Whether ``value`` is a node that calls one of ``targets``."""
    return isinstance(value, Node) and value.op == "call_function" and value.target in targets


def calls(graph: Graph, *targets: object) -> Iterator[Node]:
    """The nodes that call one of ``targets``, as they are now; the graph may be changed meanwhile."""
    yield from [node for node in graph.nodes if is_call(node, *targets)]


def arguments(node: object) -> tuple[Any, ...]:
    """The positional arguments of a node, untyped."""
    return node.args if isinstance(node, Node) else ()


def target_of(node: object) -> Any:  # noqa: ANN401  an operator, an operation, or a name
    """What a node calls, untyped."""
    return node.target if isinstance(node, Node) else None


def operation_of(node: object, kind: type[Kind]) -> Kind | None:
    """The operation of ``node`` if it is of ``kind``."""
    target = target_of(node)
    return target if isinstance(target, kind) else None


def put(graph: Graph, before: Node, target: Callable[..., Any], *args: Any, like: Node | None = None) -> Node:  # noqa: ANN401
    """Insert a call before a node; ``like`` is a node whose result has the same shape."""
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    if like is not None and "val" in like.meta:
        node.meta["val"] = like.meta["val"]
    return node


def insert_after(graph: Graph, after: Node, target: Callable[..., Any], *args: Any, like: Node | None = None) -> Node:  # noqa: ANN401
    """Insert a call after a node, and after those that pick its outputs."""
    place = after
    while place.next.op == "call_function" and place.next.target is operator.getitem and place.next.args[0] is after:
        place = place.next
    return put(graph, place.next, target, *args, like=like)


def replace(old: Node, new: Node) -> None:
    """Let everything that reads ``old`` read ``new``, and drop ``old``."""
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def value_of(node: object) -> torch.Tensor | None:
    """The fake tensor that was recorded for a node, if any."""
    found = node.meta.get("val") if isinstance(node, Node) else None
    return found if isinstance(found, torch.Tensor) else None


def shown_by(node: Node) -> Node:
    """The node whose memory ``node`` shows: itself unless it is a view."""
    while node.op == "call_function" and isinstance(arguments(node)[0] if arguments(node) else None, Node):
        if node.target is not operator.getitem and not _is_view(node.target):
            break
        if node.target is operator.getitem and not _is_view(target_of(arguments(node)[0])):
            break
        node = arguments(node)[0]
    return node


def _is_view(target: object) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return False
    returned = target._schema.returns
    return target is aten._unsafe_view.default or (len(returned) == 1 and returned[0].alias_info is not None)


def shape_text(node: object) -> str | None:
    """The recorded shape as text: equal texts are equal shapes, without asking symbolic sizes."""
    value = value_of(node)
    return None if value is None else str(tuple(value.shape))


def merge_equal(graph: Graph) -> None:
    """Compute once what is computed twice of the same values."""
    seen: dict[tuple[object, ...], Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_pure(node.target):
            continue
        key = (node.target, _key(node.args), _key(node.kwargs))
        if key in seen:
            replace(node, seen[key])
        else:
            seen[key] = node


def is_pure(target: object) -> bool:
    """Whether a call computes the same of the same values, and does nothing else."""
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return isinstance(target, Operation) or target is operator.getitem


def _key(value: object) -> object:
    if isinstance(value, Node):
        return "node", id(value)
    if isinstance(value, list | tuple):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in sorted(value.items()))
    return type(value).__name__, str(value)
