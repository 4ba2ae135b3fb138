"""Models that were quantized as a graph run fused without being asked."""

from __future__ import annotations

from torch import nn

from inc_torch.quantizers import graph_of, is_graph, set_executor

__all__ = ["TOLERANCE", "run_graph_fused"]

TOLERANCE = 0.1
"""Root mean square of a difference over that of the output that is accepted if nobody says otherwise.

What a deep int8 model computes moves by some percent when values beside a border between two codes are rounded the
other way, as they are whenever floats are added in another order.
"""


def run_graph_fused(model: nn.Module, tolerance: float = TOLERANCE) -> None:
    """Let a model that was quantized as a graph compute it fused in evaluation, where compiled kernels are available.

    Nothing changes in other models, and as long as somebody's hooks want to see what modules compute.
    """
    if is_graph(model) and (graph := graph_of(model)) is not None:
        from inc_torch.inference._graph_executor import GraphExecutor  # takes time that others need not spend

        set_executor(model, GraphExecutor(model, graph, tolerance))
