"""A captured graph that runs fused, and checks itself against what was captured."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch.fx import GraphModule, Interpreter
from torch.utils._pytree import tree_leaves

from inc_torch.core.errors import InexactWarning
from inc_torch.core.user_warning import warn_user
from inc_torch.inference._graph import arguments, calls
from inc_torch.inference._opaque import INT8_MODULE, hidden_module
from inc_torch.inference._plan import Plan
from inc_torch.inference._watch import Watch
from inc_torch.inference.passes import fuse

__all__ = ["FusedGraph"]

logger = logging.getLogger(__name__)

_PLANS: Final = 8
"""Plans that are kept, each with its memory; the one not used for longest goes first."""


@final
class FusedGraph:
    """Runs a captured graph.

    The first time that it sees certain shapes it runs operation by operation; from the second time on a `Plan` for
    these shapes. What the very first call computes is compared with the graph as it was captured; if the two are
    further apart than ``tolerance`` the captured graph is what runs from then on, and a warning says so.

    Args:
        captured: Operators of ``aten``, functional, with calls of int8 modules.
        tolerance: Root mean square of the difference over that of the output that is still accepted.
        plans: Plan and use compiled kernels; otherwise operators of torch compute.
    """

    def __init__(self, captured: GraphModule, *, tolerance: float, plans: bool) -> None:
        self._captured = captured
        self._tolerance = tolerance
        self._uses_plans = plans
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._fused: GraphModule | None = None
        self._watch = Watch()
        self._is_refused = False
        self._plans: OrderedDict[tuple[int, ...], Plan] = OrderedDict()
        self._seen: set[tuple[int, ...]] = set()

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401  whatever the graph takes and returns
        """The outputs of the graph."""
        with torch.no_grad():
            if not self._watch.sees_no_change:
                self._forget()
            fused = self._fused
            if fused is None:
                return self._run_first(inputs)
            if self._is_refused:
                return Interpreter(self._captured).run(*inputs)
            # Plans own memory: a second thread runs without one.
            if self._uses_plans and self._lock.acquire(blocking=False):
                try:
                    return self._run_planned(fused, inputs)
                finally:
                    self._lock.release()
            return Interpreter(fused).run(*inputs)

    def _run_first(self, inputs: Sequence[Any]) -> Any:  # noqa: ANN401
        fused = GraphModule(self._captured, copy.deepcopy(self._captured.graph))
        fuse(fused.graph)
        self._watch = Watch(hidden_module(arguments(node)[1]) for node in calls(self._captured.graph, INT8_MODULE))
        self._fused = fused
        expected = Interpreter(self._captured).run(*inputs)
        found = Plan(fused, inputs).run(inputs) if self._uses_plans else Interpreter(fused).run(*inputs)
        distance = max(map(_distance, _floats(found), _floats(expected)), default=0.0)
        logger.info("The fused graph differs from the unfused one by %.2g of the output's root mean square.", distance)
        if distance <= self._tolerance:
            return found
        self._is_refused = True
        message = (
            f"optimize_for_inference left the model as it was: fused, an output differs by {distance:.2g} of its root "
            f"mean square, expected at most {self._tolerance:.2g}. Pass a greater tolerance if that is acceptable."
        )
        warn_user(message, InexactWarning)
        return expected

    def _run_planned(self, fused: GraphModule, inputs: Sequence[Any]) -> Any:  # noqa: ANN401
        key = tuple(value for value in inputs if isinstance(value, int))
        plan = self._plans.get(key)
        if plan is None:
            if key not in self._seen:
                self._seen.add(key)
                return Interpreter(fused).run(*inputs)
            plan = self._plans[key] = Plan(fused, inputs)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return plan.run(inputs)


def _floats(outputs: Any) -> list[torch.Tensor]:  # noqa: ANN401
    return [
        output
        for output in tree_leaves(outputs)
        if isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel()
    ]


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    reference = expected.square().mean().sqrt()
    return float((found - expected).square().mean().sqrt() / reference) if reference else float(found.abs().max())
