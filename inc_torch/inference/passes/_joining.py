"""Concatenations and shuffles of channels: codes of one grid go through them."""

from __future__ import annotations

from typing import Any, Final

from torch.fx import Graph, Node

from inc_torch.inference._concatenation import Concatenate
from inc_torch.inference._graph import (
    arguments,
    aten,
    calls,
    insert_after,
    is_call,
    operation_of,
    put,
    replace,
    shape_text,
    target_of,
    value_of,
)
from inc_torch.inference._interleaving import Interleave

__all__ = ["climb_over_pieces", "find_shuffles", "is_along_channels", "joined", "parts_of", "read_parts"]

_IMAGE_RANK: Final = 4
_SHUFFLED_RANK: Final = 5
_CHANNELS: Final = 1
_SLICE_ARGUMENTS: Final = 4
"""Of a slice without steps."""


def find_shuffles(graph: Graph) -> None:
    """Channels of images, seen as [groups, channels of a group], turned and put in a row again."""
    for node in calls(graph, aten.view.default, aten._unsafe_view.default):
        turned = arguments(node)[0]
        turned = arguments(turned)[0] if is_call(turned, aten.clone.default) else turned
        if not is_call(turned, aten.transpose.int) or list(arguments(turned)[1:]) != [1, 2]:
            continue
        grouped = arguments(turned)[0]
        if not is_call(grouped, aten.view.default, aten._unsafe_view.default):
            continue
        source = arguments(grouped)[0]
        groups = _groups_of(source, grouped)
        if groups is not None and shape_text(source) == shape_text(node):
            parts = _in_parts(graph, node, source, groups)
            replace(node, put(graph, node, Interleave(len(parts)), *parts, like=node))


def _groups_of(source: Node, grouped: Node) -> tuple[int, int] | None:
    """How many groups a view makes of the channels of images, and the channels of each."""
    before, after = value_of(source), value_of(grouped)
    if before is None or after is None or before.dim() != _IMAGE_RANK or after.dim() != _SHUFFLED_RANK:
        return None
    samples, _, *size = before.shape
    groups, channels = after.shape[1:3]
    if str([samples, *size]) != str([after.shape[0], *after.shape[3:]]):
        return None
    return (groups, channels) if all(isinstance(count, int) for count in (groups, channels)) else None


def _in_parts(graph: Graph, before: Node, source: Node, groups: tuple[int, int]) -> list[Node]:
    count, channels = groups
    begins = range(0, count * channels, channels)
    values: Any = value_of(source)
    parts = [put(graph, before, aten.slice.Tensor, source, _CHANNELS, begin, begin + channels) for begin in begins]
    for part in parts:
        part.meta["val"] = values[:, :channels]
    return parts


def read_parts(graph: Graph) -> None:
    """Read what was concatenated instead of the same channels of the concatenation."""
    for node in calls(graph, aten.slice.Tensor):
        whole, axis, begin, end = (*arguments(node), 0, None, None)[:4]
        if axis != _CHANNELS or len(arguments(node)) != _SLICE_ARGUMENTS:
            continue
        part = _part_between(whole, begin, end)
        if part is not None:
            replace(node, part)


def _part_between(whole: Node, begin: int, end: int) -> Node | None:
    """What lies at these channels of a concatenation, if it is one part of it."""
    place: Any = 0
    for part in _concatenated(whole):
        channels: Any = _channels_of(part, like=whole)
        if channels is None:
            return None
        if (begin, end) == (place, place + channels):
            return part
        place += channels
    return None


def _channels_of(part: Node, like: Node) -> int | None:
    """How many channels of a concatenation are those of a part; None if that depends on the input."""
    value, whole = value_of(part), value_of(like)
    if value is None or whole is None or value.dtype != whole.dtype:
        return None
    channels: Any = value.shape[_CHANNELS]
    return channels if isinstance(channels, int) else None


def _concatenated(node: Node) -> list[Node]:
    """What a node puts side by side along the channels of images; nothing if it does something else."""
    if operation_of(node, Concatenate) is not None:
        return list(arguments(node))
    return list(arguments(node)[0]) if is_call(node, aten.cat.default) and is_along_channels(node) else []


def climb_over_pieces(graph: Graph, node: Node) -> bool:
    """Round a whole image where it is read by pieces of its channels alone that are all rounded to the same grid."""
    source = arguments(node)[0]
    whole = arguments(source)[0] if is_call(source, aten.slice.Tensor) else None
    value = value_of(whole)
    if not isinstance(whole, Node) or whole.op != "call_function" or value is None or value.dim() != _IMAGE_RANK:
        return False
    pieces = list(whole.users)
    are_slices = all(is_call(piece, aten.slice.Tensor) and arguments(piece)[1] == _CHANNELS for piece in pieces)
    if not are_slices or any(reader.target != node.target for piece in pieces for reader in piece.users):
        return False
    codes = insert_after(graph, whole, target_of(node), whole, like=whole)
    for piece in pieces:
        for reader in list(piece.users):
            replace(reader, put(graph, piece, aten.slice.Tensor, codes, *arguments(piece)[1:], like=piece))
        graph.erase_node(piece)
    return True


def parts_of(node: Node) -> list[Node] | None:
    """What a node joins to one tensor, if it does."""
    if operation_of(node, Interleave) is not None:
        return list(arguments(node))
    return list(arguments(node)[0]) if is_call(node, aten.cat.default) else None


def joined(graph: Graph, before: Node, node: Node, codes: list[Node]) -> Node:
    """Join codes as ``node`` joins the floats that they stand for."""
    if len(codes) == 1:
        return codes[0]
    if operation_of(node, Interleave) is not None:
        return put(graph, before, target_of(node), *codes, like=node)
    if is_along_channels(node):
        return put(graph, before, Concatenate(len(codes)), *codes, like=node)
    return put(graph, before, aten.cat.default, codes, *arguments(node)[1:], like=node)


def is_along_channels(node: Node) -> bool:
    """Whether a concatenation is one of the channels of images."""
    parts, axis = (*arguments(node), 0)[:2]
    values = [value_of(part) for part in parts]
    are_images = all(value is not None and value.dim() == _IMAGE_RANK for value in values)
    return are_images and axis in (_CHANNELS, _CHANNELS - _IMAGE_RANK)
