"""Compute the graph of a model fused."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from typing import Any, Final, final

import torch
from torch import nn
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from inc_torch import kernels
from inc_torch.core.observed import is_observed
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
        self._use(graph)

    def _use(self, graph: GraphModule) -> None:
        self._graph = graph
        model = self._model()
        self._modules = [] if model is None else list(model.modules())
        self._watch = Watch(self._modules, everything=True)
        self._hooks = [getattr(module, name) for module in graph.modules() for name in _HOOKS]
        self._fused: OrderedDict[object, FusedGraph | None] = OrderedDict()

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401  as the model
        if not self._watch.sees_no_change:
            self._renew()
        is_simple = all(map(_is_plain, inputs)) and not is_observed() and not torch.is_autocast_enabled("cpu")
        if not is_simple or any(self._hooks) or self._is_training or not kernels.available():
            return self._graph(*inputs)
        key = tuple((value.dtype, value.shape, value.stride()) for value in inputs)
        if key not in self._fused:
            self._fused[key] = self._captured(inputs)
            if len(self._fused) > _SHAPES:
                self._fused.popitem(last=False)
        self._fused.move_to_end(key)
        run = self._fused[key]
        return self._graph(*inputs) if run is None else run(*inputs)

    @property
    def _is_training(self) -> bool:
        """Whether some module is left in training mode though the model is not, such as dropout that goes on."""
        return any(module.training for module in self._modules)

    def _renew(self) -> None:
        """Capture anew, as constants of what was captured are no longer those of the model."""
        model: Any = self._model()
        graph: Any = graph_of(model)
        self._use(graph)

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
        with capturing(), torch.no_grad():
            captured = make_fx(functionalize(self._graph), tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        return FusedGraph(captured, tolerance=self._tolerance, plans=True, watches=False)


def _is_plain(value: object) -> bool:
    return type(value) is torch.Tensor and value.device.type == "cpu"
