"""Compute the graph of a model fused."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, final

import torch
from torch import nn
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from inc_torch import kernels
from inc_torch.core.observed import TRACING, is_observed
from inc_torch.inference._fused_graph import FusedGraph
from inc_torch.inference._opaque import can_hide, capturing, hide
from inc_torch.inference._watch import Watch
from inc_torch.quantizers import Int8ConvTranspose1d, Int8ConvTranspose2d, Int8ConvTranspose3d, graph_of

__all__ = ["GraphExecutor"]

logger = logging.getLogger(__name__)

_SHAPES: Final = 16
"""Shapes of inputs for which a fused graph is kept."""
_NOT_CAPTURED: Final = (Int8ConvTranspose1d, Int8ConvTranspose2d, Int8ConvTranspose3d)
"""They would keep what they packed of the stand-ins for tensors that a capture runs on."""
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")


@final
class GraphExecutor:
    """Computes a graph; captured and fused for each shape of inputs when it first comes."""

    def __init__(self, model: nn.Module, graph: GraphModule, tolerance: float) -> None:
        self._model = weakref.ref(model)
        self._tolerance = tolerance
        self._lock = threading.Lock()
        self._use(graph)

    def _use(self, graph: GraphModule) -> None:
        self._graph = graph
        model = self._model()
        self._modules = [] if model is None else list(model.modules())
        self._watch = Watch(self._modules, everything=True)
        self._hooks = [getattr(module, name) for module in graph.modules() for name in _HOOKS]
        self._fused: OrderedDict[object, FusedGraph | None] = OrderedDict()

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401  as the model
        if all(map(_is_plain, inputs)) and not is_observed() and not torch.is_autocast_enabled("cpu"):
            with self._lock:
                run = self._run_of(inputs)
        else:
            run = self._current()
        return run(*inputs)

    def _run_of(self, inputs: tuple[torch.Tensor, ...]) -> Callable[..., Any]:
        """What runs such inputs, captured now if it is not yet."""
        graph = self._current()
        if any(self._hooks) or self._is_training or not kernels.available():
            return graph
        key = tuple((value.dtype, value.shape, value.stride()) for value in inputs)
        if key not in self._fused:
            self._fused[key] = self._captured(inputs)
            if len(self._fused) > _SHAPES:
                self._fused.popitem(last=False)
        self._fused.move_to_end(key)
        return self._fused[key] or graph

    def _current(self) -> GraphModule:
        """The graph, made anew if the model has changed, as constants of it are no longer those of the model then."""
        if not self._watch.sees_no_change:
            model: Any = self._model()
            graph: Any = graph_of(model)
            self._use(graph)
        return self._graph

    @property
    def _is_training(self) -> bool:
        """Whether some module is left in training mode though the model is not, such as dropout that goes on."""
        return any(module.training for module in self._modules)

    def _captured(self, inputs: tuple[torch.Tensor, ...]) -> FusedGraph | None:
        """The fused graph for such inputs; None if something in the model cannot be captured."""
        if any(isinstance(module, _NOT_CAPTURED) for module in self._graph.modules()):
            return None
        try:
            return self._capture(inputs)
        except Exception as error:  # noqa: BLE001  whatever tracing stumbles over, the graph itself computes it
            logger.info("%s does not run fused: %s: %s", type(self._graph).__name__, type(error).__name__, error)
            return None

    def _capture(self, inputs: tuple[torch.Tensor, ...]) -> FusedGraph:
        for module in self._graph.modules():
            if can_hide(module):
                hide(module)
        with TRACING, capturing(), torch.no_grad():
            captured = make_fx(functionalize(self._graph), tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        return FusedGraph(captured, tolerance=self._tolerance, plans=True, watches=False)


def _is_plain(value: object) -> bool:
    return type(value) is torch.Tensor and value.device.type == "cpu"
