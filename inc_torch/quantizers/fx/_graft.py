"""Let a model compute by its graph: the same object, whose class is exchanged for one that runs it.

The graph calls the model's own modules, so that Parameters, names, hooks of layers and the state dict stay. What it
calls beside them are the snaps, children of the model under one reserved name. Whenever the graph is not what is
asked for (optional arguments, hooks on a block), the model's own forward runs.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final, final

import torch
from torch import fx, nn

from inc_torch.core.errors import ModelError
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._snap import FakeQuantSnap, Int8Snap
from inc_torch.quantizers.fx._capture import ORIGINAL_FORWARD, Captured, compiled, has_hooks
from inc_torch.quantizers.fx._patterns import GraphPlan

__all__ = [
    "SNAPS",
    "Graft",
    "folded_norms",
    "graft_of",
    "grafted_class",
    "graph_of",
    "is_graph",
    "original_forward",
    "set_executor",
    "snapped_graph",
    "snaps_of",
]

SNAPS: Final = "_inc_torch_snaps"
"""The reserved name of the child that holds the snaps."""
_GRAFT: Final = "_inc_torch_graft"
_DISABLED: Final = "_torchdynamo_disable"
"""What torch marks functions with that it is not to compile."""

Executor = Callable[..., Any]
ExecutorFactory = Callable[[nn.Module], Executor]


def graft_of(model: nn.Module) -> Graft | None:
    """What lets ``model`` compute by a graph, or None."""
    found = model.__dict__.get(_GRAFT)
    return found if isinstance(found, Graft) else None


@final
class Graft:
    """The graph of one model, and what was decided on it.

    Attributes:
        captured: The graph as it was traced.
        plan: What was decided on it.
        is_pending: Nobody knows yet whether the graph may be used.
        check: Called as long as that is so, with the model and its arguments; says whether to use the graph this time.
        make_executor: Makes what runs the model instead of the graph in evaluation without gradients; None is nothing.
    """

    def __init__(self, captured: Captured, plan: GraphPlan) -> None:
        self.captured, self.plan = captured, plan
        self.is_pending = False
        self.check: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], bool] = _use
        self.make_executor: ExecutorFactory | None = None
        self._executor: Executor | None = None
        self._function: Callable[..., Any] | None = None
        self._containers: tuple[nn.Module, ...] | None = None

    def attach(self, model: nn.Module) -> None:
        """Let ``model`` compute by the graph from now on."""
        model.__class__ = grafted_class(type(model))
        model.__dict__[_GRAFT] = self

    def detach(self, model: nn.Module) -> None:
        """Let ``model`` compute by its own forward again, without snaps and folded normalizations."""
        model._modules.pop(SNAPS, None)
        for module in model.modules():
            if isinstance(module, FakeQuantModule):
                module.fold_norm(None)
                if module.range_owner is not None:
                    module._observing = module.range_owner._observing
                    module.share_range(None)
        del model.__dict__[_GRAFT]
        kind: Any = type(model)
        if _IS_GRAFTED in vars(kind):
            model.__class__ = kind.__bases__[0]

    def use(self, plan: GraphPlan) -> None:
        """Follow another plan."""
        self.plan, self._function = plan, None

    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  anything
        """Compute the output of ``model``."""
        own, inputs = original_forward(model), self._inputs(args, kwargs)
        if self.is_pending:
            is_compiling = torch.compiler.is_compiling() and not hasattr(self.check, _DISABLED)
            if is_compiling or not self.check(model, args, kwargs):  # it may take the graph away
                return own(model, *args, **kwargs)
        if inputs is None or any(has_hooks(container) for container in self._blocks(model)):
            return own(model, *args, **kwargs)
        is_inference = not (model.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        if self.make_executor is not None and is_inference:
            return self._executor_of(model, self.make_executor)(*inputs)
        return self.function(model)(model, *inputs)

    def _executor_of(self, model: nn.Module, make: ExecutorFactory) -> Executor:
        if self._executor is None:
            self._executor = make(model)
        return self._executor

    def use_executor(self, make: ExecutorFactory | None) -> None:
        """Let what ``make`` makes of the model run it; the one that there was is dropped."""
        self.make_executor, self._executor = make, None

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """The arguments in the order of the graph; None if it does not take just these."""
        names = self.captured.inputs
        if not kwargs:
            return args if len(args) == len(names) else None
        rest = names[len(args) :]
        return (*args, *(kwargs[name] for name in rest)) if set(rest) == kwargs.keys() else None

    def _blocks(self, model: nn.Module) -> tuple[nn.Module, ...]:
        if self._containers is None:
            self._containers = tuple(model.get_submodule(name) for name in self.captured.containers)
        return self._containers

    def function(self, model: nn.Module) -> Callable[..., Any]:
        """The graph as a function of a model and its inputs."""
        if self._function is None:
            self._function = compiled(snapped_graph(self.captured.graph_of(model), self.plan))
        return self._function

    def __deepcopy__(self, memo: dict[int, Any]) -> Graft:
        """The graph of a copy of the model: everything but what belongs to the model itself is shared."""
        copied = copy.copy(self)
        copied._executor = copied._containers = None
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "check": _use, "_executor": None, "_function": None, "_containers": None}


def _use(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:  # noqa: ARG001  a check
    return True


def original_forward(model: nn.Module) -> Callable[..., Any]:
    """The forward of the class that was grafted on."""
    kind: Any = type(model)
    found: Callable[..., Any] = getattr(kind, ORIGINAL_FORWARD)
    return found


def snapped_graph(graph: fx.Graph, plan: GraphPlan) -> fx.Graph:
    """A copy of ``graph`` in which every tensor that is kept as codes goes through its snap."""
    made = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = made.graph_copy(graph, copies)
    if output is not None:
        made.output(output)
    for node, copied in copies.items():
        if node.name in plan.snaps:
            with made.inserting_after(copied):
                snap = made.call_module(f"{SNAPS}.{node.name}", (copied,))
            for user in [user for user in copied.users if user is not snap]:
                user.replace_input_with(copied, snap)
    return made


def is_graph(model: nn.Module) -> bool:
    """Whether ``model`` computes by a graph."""
    return graft_of(model) is not None


def folded_norms(model: nn.Module) -> dict[str, str]:
    """By the name of a layer, that of the batch normalization which it has taken in; whose output is now its own."""
    graft = graft_of(model)
    return {} if graft is None else {layer: norm for norm, layer in graft.plan.folds.items()}


def graph_of(model: nn.Module) -> fx.GraphModule | None:
    """The graph that ``model`` computes in evaluation, or None if it was not quantized as one.

    Its nodes call the modules of ``model`` by their names: int8 modules, which round what they read themselves; snaps,
    ``_inc_torch_snaps.<node>``, which round what several read; and whatever else the model consists of.

    Returns:
        A new `torch.fx.GraphModule` on the modules of ``model``; changing the graph does not change the model.
    """
    graft = graft_of(model)
    if graft is None:
        return None
    graph = snapped_graph(graft.captured.graph_of(model), graft.plan)
    for node in list(graph.nodes):
        if node.op == "get_attr" and str(node.target).rpartition(".")[2] == "training":
            for user in list(node.users):
                _replace_argument(user, node, False)
            graph.erase_node(node)
    return fx.GraphModule(model, graph, type(model).__name__)


def _replace_argument(user: fx.Node, node: fx.Node, constant: bool) -> None:
    def replaced(value: fx.Node) -> Any:  # noqa: ANN401  a node, or the constant
        return constant if value is node else value

    user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), replaced)


def set_executor(model: nn.Module, make: ExecutorFactory | None) -> None:
    """Let an executor compute the graph of ``model`` in evaluation without gradients; None gives it back.

    Args:
        model: A model that was quantized as a graph.
        make: Called with the model before it is first executed, and with a copy of the model before that is; pickled
            with the model. What it returns gets the required inputs of the forward, by position.

    Raises:
        ModelError: ``model`` was not quantized as a graph.
    """
    graft = graft_of(model)
    if graft is None:
        message = (
            f"{type(model).__name__} was not quantized as a graph, so there is none to execute. Its report says why: "
            "print(model.report())."
        )
        raise ModelError(message)
    graft.use_executor(make)


def snaps_of(model: nn.Module) -> dict[str, FakeQuantSnap | Int8Snap]:
    """The snaps of a model, by the names of their nodes."""
    holder = model._modules.get(SNAPS)
    children = {} if holder is None else holder._modules
    return {name: child for name, child in children.items() if isinstance(child, FakeQuantSnap | Int8Snap)}


_IS_GRAFTED: Final = "_inc_torch_is_grafted"
_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def grafted_class(original: type[nn.Module]) -> type[nn.Module]:
    """A class of the same name whose forward runs the graph of its object, if it has one."""
    if hasattr(original, _IS_GRAFTED):
        return original
    if original not in _CLASSES:
        _CLASSES[original] = _make_class(original)
    return _CLASSES[original]


def _make_class(original: type[nn.Module]) -> type[nn.Module]:
    plain: Any = original.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as the original
        graft = graft_of(self)
        return plain(self, *args, **kwargs) if graft is None else graft.run(self, args, kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401  SupportsIndex, as in object
        own: Any = self
        if original.__reduce_ex__ is object.__reduce_ex__ and original.__reduce__ is object.__reduce__:
            return _restore, (original,), own.__getstate__()
        reduced: Any = original.__reduce_ex__(own, protocol)
        return _rebuild, reduced[:2], *reduced[2:]

    signature: Any = forward
    signature.__signature__, signature.__doc__ = inspect.signature(plain), plain.__doc__
    namespace = {
        ORIGINAL_FORWARD: plain,
        _IS_GRAFTED: True,
        "forward": forward,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce,
        **(_SEQUENCE if issubclass(original, nn.Sequential) else {}),
    }
    return type(original.__name__, (original,), namespace)


def _visible(model: nn.Module) -> nn.Sequential:
    """A sequence of the children of ``model`` without the snaps."""
    seen = nn.Sequential()
    for name, child in model._modules.items():
        if name != SNAPS:
            seen.add_module(name, child)
    return seen


def _length(self: nn.Module) -> int:
    return len(_visible(self))


def _children(self: nn.Module) -> Iterator[nn.Module]:
    return iter(_visible(self))


def _child(self: nn.Module, index: Any) -> nn.Module:  # noqa: ANN401  a number or a slice
    return _visible(self)[index]


_SEQUENCE: Final = {"__len__": _length, "__iter__": _children, "__getitem__": _child}
"""What a sequence of modules does with its children, all of which it would take for layers."""


def _rebuild(build: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    """Make the object as its class says by a ``__reduce__`` of its own."""
    model = build(*arguments)
    model.__class__ = grafted_class(type(model))
    return model


def _restore(original: type[nn.Module]) -> nn.Module:
    """Make the empty object that pickle and deepcopy fill."""
    kind = grafted_class(original)
    return kind.__new__(kind)
