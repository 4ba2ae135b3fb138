"""A captured graph that runs fused, and checks itself against what was captured."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from inc_torch.core.errors import InexactWarning
from inc_torch.core.user_warning import warn_user
from inc_torch.inference._graph import arguments, aten, calls, value_of
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

    What the first call computes is compared with the graph as it was captured; if the two are further apart than
    ``tolerance`` the captured graph is what runs from then on, and a warning says so. The shapes of the first call, and
    others from the second time that they come, run by a `Plan`, the rest operation by operation.

    Args:
        captured: Operators of ``aten``, functional, with calls of int8 modules.
        tolerance: Root mean square of the difference over that of the output that is still accepted.
        plans: Plan and use compiled kernels; otherwise operators of torch compute.
        watches: Look in each call whether the int8 modules are as they were; otherwise who owns the graph does.
    """

    def __init__(self, captured: GraphModule, *, tolerance: float, plans: bool, watches: bool = True) -> None:
        self._captured = captured
        self._tolerance = tolerance
        self._uses_plans = plans
        self._watches = watches
        self._obstacle = _obstacle(captured.graph)
        self._lock = threading.Lock()
        self._state: _State | None = None
        if self._obstacle:
            logger.info("A graph that %s is not fused.", self._obstacle)

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401  whatever the graph takes and returns
        """The outputs of the graph."""
        with torch.no_grad():
            state = self._state
            if self._obstacle:
                return self._captured(*inputs)
            if state is None or not state.watch.sees_no_change:
                return self._run_first(inputs)
            if state.fused is None:
                return self._captured(*inputs)
            # Plans own memory: a second thread runs without one.
            if self._uses_plans and self._lock.acquire(blocking=False):
                try:
                    return _run_planned(state, state.fused, inputs)
                finally:
                    self._lock.release()
            return Interpreter(state.fused).run(*inputs)

    def _run_first(self, inputs: Sequence[Any]) -> Any:  # noqa: ANN401
        modules = [hidden_module(arguments(node)[1]) for node in calls(self._captured.graph, INT8_MODULE)]
        watch = Watch(modules if self._watches else ())
        fused = GraphModule(self._captured, copy.deepcopy(self._captured.graph))
        fuse(fused.graph)
        expected = Interpreter(self._captured).run(*inputs)
        plans = OrderedDict({_key(inputs): Plan(fused, inputs)} if self._uses_plans else {})
        found = plans[_key(inputs)].run(inputs) if plans else Interpreter(fused).run(*inputs)
        distance = max(map(_distance, _floats(found), _floats(expected)), default=0.0)
        logger.info("The fused graph differs from the unfused one by %.2g of the output's root mean square.", distance)
        if distance <= self._tolerance:
            self._state = _State(watch, fused, plans)
            return found
        self._state = _State(watch, None)
        message = (
            f"optimize_for_inference left the model as it was: fused, an output differs by {distance:.2g} of its root "
            f"mean square, expected at most {self._tolerance:.2g}. Pass a greater tolerance if that is acceptable."
        )
        warn_user(message, InexactWarning)
        return expected


@final
@dataclass(frozen=True, slots=True)
class _State:
    """What is known of a graph as long as its modules stay as they are.

    Attributes:
        watch: Of these modules.
        fused: The fused graph; None if it is too far from the captured one.
        plans: For the shapes of the first call, and for those that came twice.
        seen: Shapes that came.
    """

    watch: Watch
    fused: GraphModule | None
    plans: OrderedDict[tuple[int, ...], Plan] = field(default_factory=OrderedDict)
    seen: set[tuple[int, ...]] = field(default_factory=set)


def _run_planned(state: _State, fused: GraphModule, inputs: Sequence[Any]) -> Any:  # noqa: ANN401
    key = _key(inputs)
    plan = state.plans.get(key)
    if plan is None:
        if key not in state.seen:
            state.seen.add(key)
            return Interpreter(fused).run(*inputs)
        plan = state.plans[key] = Plan(fused, inputs)
        if len(state.plans) > _PLANS:
            state.plans.popitem(last=False)
    state.plans.move_to_end(key)
    return plan.run(inputs)


def _key(inputs: Sequence[Any]) -> tuple[int, ...]:
    """The sizes among the inputs, from which all shapes follow."""
    return tuple(value for value in inputs if isinstance(value, int))


def _obstacle(graph: Graph) -> str | None:
    """What keeps a graph from being fused."""
    if any(_is_random(node) for node in graph.nodes):
        return "draws random numbers, as in training,"
    devices = {value.device.type for node in graph.nodes if (value := value_of(node)) is not None} - {"cpu"}
    return f"computes on {', '.join(sorted(devices))}" if devices else None


def _is_random(node: Node) -> bool:
    target = node.target
    if target is aten._scaled_dot_product_flash_attention_for_cpu.default:
        return bool(arguments(node)[3:4] and arguments(node)[3])
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _floats(outputs: Any) -> list[torch.Tensor]:  # noqa: ANN401
    return [
        output
        for output in tree_leaves(outputs)
        if isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel()
    ]


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of values that are expected to be numbers; infinite ones must be the same."""
    is_number = ~expected.isnan()
    found, expected = found[is_number].double(), expected[is_number].double()
    is_finite = expected.isfinite()
    if not (torch.equal(found[~is_finite], expected[~is_finite]) and found[is_finite].isfinite().all()):
        return float("inf")
    found, expected = found[is_finite], expected[is_finite]
    if not expected.numel():
        return 0.0
    reference = expected.square().mean().sqrt()
    return float((found - expected).square().mean().sqrt() / reference) if reference else float(found.abs().max())
