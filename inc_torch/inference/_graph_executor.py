"""Models that were quantized as a graph run fused without being asked."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, Final, final

import torch
from torch import nn
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from inc_torch import kernels
from inc_torch.inference._fused_graph import TOLERANCE, FusedGraph
from inc_torch.inference._opaque import can_hide, capturing, hide
from inc_torch.quantizers import graph_of, set_executor

__all__ = ["run_graph_fused"]

logger = logging.getLogger(__name__)

_SHAPES: Final = 16
"""Shapes of inputs for which a fused graph is kept."""
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")


def run_graph_fused(model: nn.Module, tolerance: float = TOLERANCE) -> None:
    """Let a model that was quantized as a graph compute it fused in evaluation, where compiled kernels are available.

    Nothing changes in other models, and as long as somebody's hooks want to see what modules compute.
    """
    graph = graph_of(model)
    if graph is not None:
        set_executor(model, _GraphExecutor(graph, tolerance))


@final
class _GraphExecutor:
    """Computes a graph; captured and fused for each shape of inputs when it first comes."""

    def __init__(self, graph: GraphModule, tolerance: float) -> None:
        self._tolerance = tolerance
        self._graph = graph
        self._hooks = [getattr(module, name) for module in graph.modules() for name in _HOOKS]
        self._fused: OrderedDict[object, FusedGraph] = OrderedDict()

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401  as the model
        if not all(map(_is_plain, inputs)) or any(self._hooks) or not kernels.available():
            return self._graph(*inputs)
        key = tuple((value.dtype, value.shape, value.stride()) for value in inputs)
        if key not in self._fused:
            self._fused[key] = self._captured(inputs)
            if len(self._fused) > _SHAPES:
                self._fused.popitem(last=False)
        self._fused.move_to_end(key)
        return self._fused[key](*inputs)

    def _captured(self, inputs: tuple[torch.Tensor, ...]) -> FusedGraph:
        for module in self._graph.modules():
            if can_hide(module):
                hide(module)
        with capturing(), torch.no_grad():
            captured = make_fx(functionalize(self._graph), tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        return FusedGraph(captured, tolerance=self._tolerance, plans=True)


def _is_plain(value: object) -> bool:
    return type(value) is torch.Tensor and value.device.type == "cpu"
