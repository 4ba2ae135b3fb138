"""Models that were quantized as a graph run fused without being asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch import nn

from inc_torch.core.errors import ModelError
from inc_torch.quantizers import graph_of, is_graph, set_executor

__all__ = ["TOLERANCE", "run_graph_fused"]

TOLERANCE: Final = 0.3
"""Root mean square of a difference over that of the output that is accepted if nobody says otherwise.

What a deep int8 model computes moves by some percent, that of a badly quantized one by more, when values beside a
border between two codes are rounded the other way, as they are whenever floats are added in another order.
"""


def run_graph_fused(model: nn.Module, tolerance: float = TOLERANCE) -> None:
    """Let a model that was quantized as a graph compute it fused in evaluation, where compiled kernels are available.

    Nothing changes in other models, and as long as somebody's hooks want to see what modules compute.
    """
    if is_graph(model):
        set_executor(model, partial(_executor, tolerance=tolerance))


def _executor(model: nn.Module, tolerance: float) -> Callable[..., Any]:
    from inc_torch.inference._graph_executor import GraphExecutor  # takes time that others need not spend

    graph = graph_of(model)
    if graph is None:
        message = f"{type(model).__name__} lost its graph: expected a model that was quantized as one."
        raise ModelError(message)
    return GraphExecutor(model, graph, tolerance)
