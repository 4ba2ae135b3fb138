"""Quantization of whole graphs: batch normalization folded, tensors kept in int8 between layers.

A model that `torch.fx` traces whole is quantized as one graph: of its own modules and functions, float between
modules, with int8 arithmetic where the int8 modules are, and two things more. Batch normalization is folded into the
layer before it; and a tensor that stays in int8 between modules is rounded once, where it is made, to a grid that its
readers share. Everything else is quantized module by module.
"""

from __future__ import annotations

from inc_torch.quantizers.fx._capture import Captured, Refused, capture
from inc_torch.quantizers.fx._description import describe_graph, graft_grids
from inc_torch.quantizers.fx._graft import folded_norms, graph_of, is_graph, set_executor
from inc_torch.quantizers.fx._operations import Meaning, meaning_of
from inc_torch.quantizers.fx._patterns import GraphPlan, Snapped
from inc_torch.quantizers.fx._stage import GraphStage, is_of_hugging_face, settle_snaps, ungraft

__all__ = [
    "Captured",
    "GraphPlan",
    "GraphStage",
    "Meaning",
    "Refused",
    "Snapped",
    "capture",
    "describe_graph",
    "folded_norms",
    "graft_grids",
    "graph_of",
    "is_graph",
    "is_of_hugging_face",
    "meaning_of",
    "set_executor",
    "settle_snaps",
    "ungraft",
]
