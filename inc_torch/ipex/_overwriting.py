"""Additions that the extension would compute over a tensor which is still read."""

from __future__ import annotations

import re
from typing import Any, Final

import torch

__all__ = ["keep_apart"]

_SAME: Final = re.compile(
    "aten::(alias|contiguous|detach|dropout|expand(_as)?|flatten|narrow|permute|reshape|select|slice|squeeze|to|t"
    "|transpose|type_as|unsqueeze|view(_as)?)"
)
"""What may hand on the memory of its first argument."""
_FUSED: Final = re.compile(f"{_SAME.pattern}|aten::(batch_norm|relu_?)")
"""What may stand between a convolution and the addition that is fused to it."""
_SUMS: Final = ("aten::add", "aten::add_")


def keep_apart(graph: Any) -> None:  # noqa: ANN401  torch's stubs do not know graphs of TorchScript
    """Let convolutions read a copy of what is added to their result, in place.

    In ``conv(x) + x`` the extension adds by letting the convolution write into ``x``, which it still reads, and the
    sums are wrong. A convolution that reads a copy is right.

    Args:
        graph: Frozen, and not yet run.
    """
    for kind in _SUMS:
        for node in graph.findAllNodes(kind):
            first, second = list(node.inputs())[:2]
            for made, other in ((first, second), (second, first)):
                source = _origin(made, _FUSED).node()
                if "convolution" in source.kind() and _origin(other) == _origin(next(source.inputs())):
                    _copy_input(graph, source)


def _origin(value: Any, through: re.Pattern[str] = _SAME) -> Any:  # noqa: ANN401  a value of a graph
    while through.fullmatch(value.node().kind()):
        value = next(value.node().inputs())
    return value


def _copy_input(graph: Any, convolution: Any) -> None:  # noqa: ANN401  a graph and a node of it
    given = next(convolution.inputs())
    nothing, copy = graph.create("prim::Constant"), graph.create("aten::clone")
    nothing.insertBefore(convolution)
    nothing.output().setType(torch._C.NoneType.get())
    copy.insertBefore(convolution)
    copy.addInput(given)
    copy.addInput(nothing.output())
    convolution.replaceInput(0, copy.output())
