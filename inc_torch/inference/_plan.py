"""One fused graph for one set of shapes: a program of compiled kernels over memory that is used again."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, final

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from inc_torch import kernels
from inc_torch.inference._graph import arguments, is_pure, target_of
from inc_torch.inference._memory import Lifetime, assign_offsets
from inc_torch.inference._operations import Operation

__all__ = ["Plan"]

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class _Batch:
    """Steps that run one after the other.

    Attributes:
        program: The steps, as one call.
        results: What leaves the plan is new memory in each run: step, role, node and a tensor of that layout.
        bindings: What lies elsewhere in each run: step, role, node and a meta tensor of the layout that the step
            reads.
    """

    program: kernels.Program
    results: tuple[tuple[kernels.Step, str, Node, torch.Tensor], ...]
    bindings: tuple[tuple[kernels.Step, str, Node, torch.Tensor], ...]


@final
@dataclass(frozen=True, slots=True)
class _Call:
    """One call of torch.

    Attributes:
        node: What it computes.
        places: Of an operation that the kernels do not take: the node that stands for each output, and where that
            lies; None is new memory.
    """

    node: Node
    places: tuple[tuple[Node, torch.Tensor | None], ...] = ()


@final
class Plan:
    """What a fused graph does for inputs of certain shapes.

    Values between operations lie in one block that belongs to the plan; constants are computed once; what leaves the
    graph, and what torch computes, is new memory in each run. A plan must not run twice at the same time.
    """

    def __init__(self, module: GraphModule, inputs: Sequence[Any]) -> None:
        graph = module.graph
        planner = _Planner(module, inputs)
        self._placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._outputs = next(node for node in graph.nodes if node.op == "output").args[0]
        self._fixed, self._work = planner.fixed, planner.work
        self.arena_size = planner.arena_size

    def run(self, inputs: Sequence[Any]) -> Any:  # noqa: ANN401  whatever the graph returns
        """The outputs of the graph."""
        values = dict(zip(self._placeholders, inputs, strict=True)) | self._fixed
        for work in self._work:
            if isinstance(work, _Batch):
                _run_batch(work, values)
            else:
                _run_call(work, values)
        return map_arg(self._outputs, lambda node: self._given_away(node, values[node]))

    def _given_away(self, node: Node, value: Any) -> Any:  # noqa: ANN401  what the graph returns there
        """A constant is kept, so who may write to it gets a copy."""
        is_kept = node in self._fixed and isinstance(value, torch.Tensor)
        return value.clone() if is_kept else value


def _run_batch(batch: _Batch, values: dict[Node, Any]) -> None:
    for step, role, node, like in batch.results:
        values[node] = result = torch.empty_like(like)
        step.rebind(role, result.data_ptr())
    for step, role, node, like in batch.bindings:
        if values[node].stride() != like.stride() or values[node].dtype != like.dtype:
            values[node] = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).copy_(values[node])
        step.rebind(role, values[node].data_ptr())
    batch.program.run()


def _run_call(call: _Call, values: dict[Node, Any]) -> None:
    if not call.places:
        values[call.node] = _called(call.node, values)
        return
    result = _called(call.node, values)
    for (holder, place), value in zip(call.places, result if isinstance(result, tuple) else (result,), strict=True):
        values[holder] = value if place is None else place.copy_(value)


@final
class _Planner:
    """Decides of each node when it is computed and where its value lies."""

    def __init__(self, module: GraphModule, inputs: Sequence[Any]) -> None:
        self.fixed: dict[Node, Any] = {}
        self.work: list[_Batch | _Call] = []
        self.arena_size = 0
        self._nodes = list(module.graph.nodes)
        self._module = module
        self._layouts: dict[Node, Any] = {}
        self._steps: list[kernels.Step] = []
        self._results: list[tuple[kernels.Step, str, Node, torch.Tensor]] = []
        self._bindings: list[tuple[kernels.Step, str, Node, torch.Tensor]] = []
        self._find_layouts(inputs)
        self._roots = self._find_roots()
        self._escaping = {self._roots.get(node, node) for node in self._nodes[-1].all_input_nodes}
        self._place_values()
        for node in self._nodes:
            self._plan_node(node)
        self._seal()

    def _find_layouts(self, inputs: Sequence[Any]) -> None:
        mode = FakeTensorMode()
        waiting = iter(inputs)
        with torch.no_grad():
            for node in self._nodes[:-1]:
                if node.op == "placeholder":
                    value = next(waiting)
                    is_tensor = isinstance(value, torch.Tensor)
                    self._layouts[node] = mode.from_tensor(value, static_shapes=True) if is_tensor else value
                    if not is_tensor:
                        self.fixed[node] = value
                elif node.op == "get_attr":
                    self.fixed[node] = attrgetter(str(node.target))(self._module)
                    self._layouts[node] = _faked(mode, self.fixed[node])
                elif is_pure(node.target) and all(source in self.fixed for source in node.all_input_nodes):
                    self.fixed[node] = _called(node, self.fixed)
                    self._layouts[node] = _faked(mode, self.fixed[node])
                else:
                    with mode:
                        self._layouts[node] = layout = _called(node, self._layouts, only_layout=True)
                    if isinstance(layout, int | float):  # a size
                        self.fixed[node] = layout

    def _find_roots(self) -> dict[Node, Node]:
        """The first node that shows some memory, for each other node that shows it."""
        roots: dict[Node, Node] = {}
        owners: dict[int, Node] = {}
        for node, layout in self._layouts.items():
            if isinstance(layout, torch.Tensor):
                owner = owners.setdefault(layout.untyped_storage()._cdata, node)
                if owner is not node:
                    roots[node] = owner
        return roots

    def _place_values(self) -> None:
        """Give every output of an operation that stays inside a place in one block."""
        order = {node: position for position, node in enumerate(self._nodes)}
        last: dict[Node, int] = {}
        for node in self._nodes:
            for source in node.all_input_nodes:
                root = self._roots.get(source, source)
                last[root] = max(last.get(root, 0), order[node])
        places = [
            (node, position, layout, order[node], last.get(holder, order[node]))
            for node in self._nodes
            if isinstance(node.target, Operation) and node not in self.fixed
            for position, holder, layout in self._outputs_of(node)
            if holder not in self._escaping
        ]
        offsets, self.arena_size = assign_offsets(
            [Lifetime(_size(layout), begin, end) for _, _, layout, begin, end in places]
        )
        with torch.inference_mode(mode=False):  # runs in every mode write to it
            block = torch.empty(self.arena_size, dtype=torch.uint8)
            self._places = {
                (node, position): _tensor_at(block, offset, layout)
                for (node, position, layout, _, _), offset in zip(places, offsets, strict=True)
            }

    def _outputs_of(self, node: Node) -> Iterator[tuple[int, Node, torch.Tensor]]:
        """Position, the node that stands for it, and layout of each output of an operation."""
        layout = self._layouts[node]
        if isinstance(layout, torch.Tensor):
            yield 0, node, layout
            return
        picks = {arguments(user)[1]: user for user in node.users}
        for position, part in enumerate(layout):
            yield position, picks.get(position, node), part

    def _plan_node(self, node: Node) -> None:
        if node.op != "call_function" or node in self.fixed:
            return
        if isinstance(node.target, Operation):
            self._plan_operation(node, node.target)
        elif node.target is operator.getitem and isinstance(arguments(node)[0].target, Operation):
            return  # was planned with the operation
        elif arguments(node) and arguments(node)[0] in self.fixed and self._is_picking(node):
            self.fixed[node] = _called(node, self.fixed)
        else:
            self._seal()
            self.work.append(_Call(node))

    def _is_picking(self, node: Node) -> bool:
        """Whether the value of a node lies where that of its first argument does, and all others are known."""
        return node in self._roots and all(source in self.fixed for source in node.all_input_nodes)

    def _plan_operation(self, node: Node, operation: Operation) -> None:
        inputs = [self._operand(source) for source in arguments(node)]
        outputs = list(self._outputs_of(node))
        places = [self._places.get((node, position)) for position, _, _ in outputs]
        for (_, holder, _), place in zip(outputs, places, strict=True):
            if place is not None:
                self.fixed[holder] = place
        targets = [
            _empty_like(layout) if place is None else place
            for (_, _, layout), place in zip(outputs, places, strict=True)
        ]
        holders = [holder for _, holder, _ in outputs]
        try:
            step = operation.step(inputs, targets)
        except kernels.OperandError as error:
            logger.info("%s is computed by operators of torch: %s", node, error)
            self._seal()
            self.work.append(_Call(node, tuple(zip(holders, places, strict=True))))
            return
        self._steps.append(step)
        for role, source in zip(operation.input_roles, arguments(node), strict=False):
            if isinstance(source, Node) and source not in self.fixed:
                self._bindings.append((step, role, source, _empty_like(self._layouts[source], device="meta")))
        for role, holder, place, target in zip(operation.output_roles, holders, places, targets, strict=True):
            if place is None:
                self._results.append((step, role, holder, target))

    def _operand(self, source: Node) -> torch.Tensor:
        """What a step is built with: the value itself if it is known, else any tensor of its layout."""
        known: torch.Tensor | None = self.fixed.get(source)
        return _empty_like(self._layouts[source]) if known is None else known

    def _seal(self) -> None:
        """End the batch that is open, if there is one."""
        if self._steps:
            program = kernels.Program(self._steps)
            self.work.append(_Batch(program, tuple(self._results), tuple(self._bindings)))
        self._steps, self._results, self._bindings = [], [], []


def _called(node: Node, values: dict[Node, Any], *, only_layout: bool = False) -> Any:  # noqa: ANN401
    args, kwargs = map_arg((arguments(node), node.kwargs), values.__getitem__)
    if only_layout and isinstance(node.target, Operation):
        layouts = target_of(node).allocate(*args)
        return layouts[0] if len(layouts) == 1 else layouts
    return node.target(*args, **kwargs)  # type: ignore[operator]  # a call_function


def _faked(mode: FakeTensorMode, value: object) -> object:
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value, static_shapes=True)
    return type(value)(_faked(mode, item) for item in value) if isinstance(value, list | tuple) else value


def _size(layout: torch.Tensor) -> int:
    return int(layout.untyped_storage().nbytes())


def _tensor_at(block: torch.Tensor, offset: int, layout: torch.Tensor) -> torch.Tensor:
    flat = block[offset : offset + _size(layout)].view(layout.dtype)
    return flat.as_strided(layout.shape, layout.stride())


def _empty_like(layout: torch.Tensor, device: str = "cpu") -> torch.Tensor:
    return torch.empty_strided(layout.shape, layout.stride(), dtype=layout.dtype, device=device)
