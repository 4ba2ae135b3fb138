"""Calls of a model, captured by `torch.compile` and fused."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final, final

import torch
from torch import nn
from torch.fx import GraphModule
from torch.fx._symbolic_trace import is_fx_tracing

from inc_torch import kernels
from inc_torch.core.observed import TRACING, is_observed
from inc_torch.inference._fused_graph import FusedGraph

__all__ = ["CompiledCall"]

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")
_RECOMPILATIONS: Final = 64
"""Graphs of a model for other ranks, dtypes and modes; sizes are symbols from the second one on."""
_OWN_LIMIT: Final[dict[str, Any]] = (
    {"recompile_limit": _RECOMPILATIONS, "isolate_recompiles": True}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters
    else {}
)
"""Graphs are counted for each model, where torch can; otherwise all models of a class share torch's limit of 8."""


@final
class CompiledCall:
    """Calls ``model`` by fused graphs, which live as long as this object.

    Hooks are part of what is captured. As torch does not look for new ones, it is asked to capture anew when the same
    hooks are there for the second time; the first time, and for hooks that come and go, the model runs as it is. So it
    does for tracers and modes that want to see its operators.
    """

    def __init__(self, model: nn.Module, tolerance: float) -> None:
        self._model = model
        self._tolerance = tolerance
        self._hooks = [getattr(module, name) for module in model.modules() for name in _HOOKS]
        self._seen_hooks = self._current_hooks()
        self._captured_hooks: tuple[int, ...] | None = None
        self._graphs: list[FusedGraph] = []
        self._call: Callable[..., Any] = model._call_impl

    def _current_hooks(self) -> tuple[int, ...]:
        return tuple(chain.from_iterable(self._hooks)) if any(self._hooks) else ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as the model
        model: Any = self._model
        if is_observed() or is_fx_tracing():  # also where another thread traces, as torch then refuses
            return model._call_impl(*args, **kwargs)
        hooks = self._current_hooks()
        if hooks != self._seen_hooks:
            self._seen_hooks = hooks
            return model._call_impl(*args, **kwargs)
        if hooks != self._captured_hooks:
            self._captured_hooks = hooks
            self._graphs.clear()
            self._call = torch.compile(model._call_impl, backend=self._backend(), **_OWN_LIMIT)
        return self._call(*args, **kwargs)

    def _backend(self) -> Callable[..., Any]:
        from torch._dynamo.backends.common import aot_autograd  # takes more than a second

        # Compiled code is never freed; so it must not keep the graphs, and with them the model, alive.
        graphs, tolerance = weakref.WeakMethod(self._keep), self._tolerance

        def compile_graph(graph: GraphModule, _: Sequence[Any]) -> Callable[[list[Any]], Any]:
            keep = graphs()
            fused = FusedGraph(graph, tolerance=tolerance, plans=kernels.available())
            if keep is not None:
                keep(fused)
            return _boxed(weakref.ref(fused))

        backend: Callable[..., Any] = aot_autograd(fw_compiler=compile_graph, inference_compiler=compile_graph)

        def one_at_a_time(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as the backend
            with TRACING:
                return backend(*args, **kwargs)

        return one_at_a_time

    def _keep(self, graph: FusedGraph) -> None:
        self._graphs.append(graph)


def _boxed(graph: weakref.ref[FusedGraph]) -> Callable[[list[Any]], Any]:
    def call(inputs: list[Any]) -> Any:  # noqa: ANN401
        values = tuple(inputs)
        inputs.clear()
        fused: Any = graph()
        return fused(*values)

    call._boxed_call = True  # type: ignore[attr-defined]  # what AOTAutograd asks for
    return call
