"""Give back results laid out as they were."""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import Graph

from inc_torch.inference._graph import aten, put, value_of
from inc_torch.inference._operations import Operation

__all__ = ["keep_layouts"]

_IMAGE_RANK: Final = 4


def keep_layouts(graph: Graph) -> None:
    """Copy images that leave the graph channels last where the caller gets rows, and may call ``.view()``."""
    output = next(node for node in graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        value = value_of(node)
        if not isinstance(node.target, Operation) or value is None or value.dim() != _IMAGE_RANK:
            continue
        if value.is_contiguous():
            rows = put(graph, output, aten.clone.default, node, like=node)
            rows.kwargs = {"memory_format": torch.contiguous_format}
            output.replace_input_with(node, rows)
