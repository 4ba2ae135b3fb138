"""Trace a model whole with torch.fx, or say why that cannot be done.

Leaves of the trace are the modules of torch.nn, and every module without children. Everything else is only the way in
which leaves are called, and is traced twice, as in ``train()`` and as in ``eval()``: both have to give the same
operations. A flag ``training`` that is handed to a function stays a flag, read anew at each call.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Final, final

import torch
import torch.utils.checkpoint
from torch import fx, nn

from inc_torch.core.names import named_layers
from inc_torch.core.observed import TRACING
from inc_torch.core.sharding import plain_class
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule
from inc_torch.quantizers._int8_module import Int8Module
from inc_torch.quantizers._padded_conv import PADDED_CONVS

__all__ = ["Captured", "Refused", "capture", "compiled", "has_hooks", "required_inputs"]

ORIGINAL_FORWARD: Final = "_inc_torch_original_forward"
"""Where a grafted class keeps the forward of the class that it was made of."""
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OWN_LEAVES: Final[tuple[type[nn.Module], ...]] = (FakeQuantModule, Int8Module, *PADDED_CONVS.values())
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_TRAINING: Final = "training"
_BAKED_IN: Final = "self.training is baked into the graph: in train() it computes by other operations than in eval()"


class Refused(Exception):  # noqa: N818  it is no error: the model is quantized class by class then
    """A model is not one graph; the message says why, as a part of a sentence."""


@final
class Captured:
    """A model as one graph.

    Attributes:
        inputs: Names of the arguments that it takes.
        leaves: Names of the modules that it calls.
        containers: Names of the modules that it looks through.
        paddings: Zeros around the inputs of convolutions of somebody's own, see `padding_convolutions`.
        digest: The same for the same operations on the same modules.
    """

    def __init__(
        self,
        graph: fx.Graph,
        inputs: tuple[str, ...],
        leaves: frozenset[str],
        containers: tuple[str, ...],
        paddings: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._graph: fx.Graph | None = graph
        self.inputs, self.leaves, self.containers, self.paddings = inputs, leaves, containers, paddings
        self.digest = hashlib.sha256("\n".join(map(_line, graph.nodes)).encode()).hexdigest()

    def graph_of(self, model: nn.Module) -> fx.Graph:
        """The graph; traced again in ``model`` where pickle, which knows no functions made in functions, left it."""
        graph = self._graph
        if graph is None:
            graph = self._graph = capture(model, self.leaves).graph_of(model)
        return graph

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graph": None}


def _line(node: fx.Node) -> str:
    target: Any = node.target
    name = target if isinstance(target, str) else f"{target.__module__}.{target.__name__}"
    return f"{node.op} {node.name} {name} {node.args} {node.kwargs}"


def capture(model: nn.Module, leaves: Collection[str] | Mapping[str, tuple[int, ...]] = ()) -> Captured:
    """Trace ``model``; it is left as it was.

    Args:
        model: Any module.
        leaves: Names of more modules that are not to be looked into; with the zeros around their input, if they are
            convolutions that pad by themselves.

    Raises:
        Refused: It cannot be traced, or the graph would not do what the model does.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> [node.name for node in capture(model).graph_of(model).nodes]
        ['input_1', '_0', '_1', 'output']
    """
    _refuse_wrapped(model)
    _refuse_hooks(model, frozenset(leaves))
    inputs = required_inputs(model)
    with TRACING:  # classes have attributes of the trace meanwhile
        tracers = {training: _traced(model, inputs, frozenset(leaves), training) for training in (True, False)}
    graph = _merged(tracers[True], tracers[False])
    called = frozenset(str(node.target) for node in graph.nodes if node.op == "call_module")
    containers = tuple(
        name
        for name, module in model.named_modules()
        if name and name not in called and any(leaf.startswith(f"{name}.") for leaf in called)
    )
    return Captured(graph, inputs, called, containers, dict(leaves) if isinstance(leaves, Mapping) else {})


def has_hooks(module: nn.Module) -> bool:
    """Whether something waits for the call of ``module`` itself."""
    own = module.__dict__
    return any(own.get(name) for name in _HOOKS)


def required_inputs(model: nn.Module) -> tuple[str, ...]:
    """The names of the arguments of ``model.forward`` that have no default."""
    needed = []
    for name, parameter in list(inspect.signature(_forward_of(model)).parameters.items())[1:]:
        if parameter.kind in _VARIADIC or parameter.default is not inspect.Parameter.empty:
            continue
        if parameter.kind not in _POSITIONAL:
            message = f"its forward has the keyword-only argument {name!r}"
            raise Refused(message)
        needed.append(name)
    return tuple(needed)


def compiled(graph: fx.Graph) -> Callable[..., Any]:
    """The function ``forward(self, *inputs)`` that runs ``graph`` on a model."""
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<graph of inc_torch>", "exec"), namespace)  # torch.fx wrote it
    made: Callable[..., Any] = namespace["forward"]
    return made


def _refuse_wrapped(model: nn.Module) -> None:
    if isinstance(model, fx.GraphModule):
        message = "it is a torch.fx.GraphModule, whose class is generated anew"
        raise Refused(message)
    for (name, module), (layer, inner) in zip(model.named_modules(), named_layers(model), strict=False):
        if name != layer or module is not inner:
            message = f"{name!r} is wrapped by {type(module).__name__}"
            raise Refused(message)
        if plain_class(type(module)) is not type(module):
            message = "it is sharded"
            raise Refused(message)


def _refuse_hooks(model: nn.Module, leaves: frozenset[str]) -> None:
    """Before anything is traced, as hooks would be called with what is no tensor."""
    tracer = _Tracer(leaves, ())
    for name, module in model.named_modules():
        if name and has_hooks(module) and not tracer.is_leaf_module(module, name):
            message = f"{name!r} has hooks, or is sharded by itself, and a graph would not call it"
            raise Refused(message)


def _forward_of(model: nn.Module) -> Callable[..., Any]:
    kind: Any = type(model)
    found: Callable[..., Any] = getattr(kind, ORIGINAL_FORWARD, kind.forward)
    return found


@final
class _Tracer(fx.Tracer):
    """Looks into what has children and is not of torch.nn."""

    traced_func_name = "_inc_torch_forward_of_required_inputs"

    def __init__(self, leaves: frozenset[str], functions: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(autowrap_functions=functions)
        self._leaves = leaves
        self._thread = threading.get_ident()
        self.owners: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is called in the graph; otherwise what it does is."""
        if module_qualified_name in self._leaves or not m._modules or isinstance(m, _OWN_LEAVES):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:  # noqa: ANN401
        """Record the call of ``m``, unless another thread runs a model of its own meanwhile."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:  # noqa: ANN401  as in torch
        """Make a node and remember in which module it was made."""
        node = super().create_node(*args, **kwargs)
        stack = list(self.module_stack)
        self.owners[node.name] = stack[-1] if stack else ""
        return node


def _traced(model: nn.Module, inputs: tuple[str, ...], leaves: frozenset[str], training: bool) -> _Tracer:
    tracer = _Tracer(leaves, tuple(_functions_of_mode(model)))
    kind: Any = type(model)
    setattr(kind, tracer.traced_func_name, _narrowed(_forward_of(model), inputs))
    try:
        with _in_mode(model, training), _without_checkpoints(), _unchanged(model):
            tracer.trace(model)
    except Refused:
        raise
    except Exception as error:  # whatever user code raises when it gets no tensors
        first = str(error).strip().split("\n")[0][:120]
        message = f"torch.fx cannot trace it: {type(error).__name__}: {first}"
        raise Refused(message) from error
    finally:
        delattr(kind, tracer.traced_func_name)
    return tracer


def _narrowed(forward: Callable[..., Any], inputs: tuple[str, ...]) -> Callable[..., Any]:
    """``forward`` with no arguments but ``inputs``, seen by torch.fx as a function of the same file."""
    arguments = ", ".join(inputs)
    namespace: dict[str, Any] = {}
    source = f"def forward(self, {arguments}):\n    return self.{_CALLED}({arguments})"
    exec(source, namespace)  # names of arguments are all that varies
    own_globals: Any = inspect.unwrap(forward).__globals__
    return FunctionType(namespace["forward"].__code__, own_globals, "forward")


_CALLED: Final = "_inc_torch_traced_forward"


def _functions_of_mode(model: nn.Module) -> Iterator[Callable[..., Any]]:
    """Functions in reach of the model's code that take the mode as an argument: their calls are recorded as such."""
    seen: set[int] = set()
    for module in model.modules():
        forward: Any = inspect.unwrap(type(module).forward)
        if not isinstance(forward, FunctionType) or forward.__module__.startswith("torch."):
            continue
        for value in list(forward.__globals__.values()):
            if isinstance(value, FunctionType) and id(value) not in seen and _TRAINING in _arguments(value):
                seen.add(id(value))
                yield value


def _arguments(function: FunctionType) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


@contextmanager
def _in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    kind: Any = type(model)
    setattr(kind, _CALLED, _forward_of(model))
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = training
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        delattr(kind, _CALLED)


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Refuse activation checkpointing, which a graph would lose."""
    thread = threading.get_ident()

    def refusing(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as torch's own, for other threads
            if threading.get_ident() != thread:
                return checkpoint(*args, **kwargs)
            message = "it uses activation checkpointing, which a graph would lose"
            raise Refused(message)

        return refuse

    own: Any = torch.utils.checkpoint
    with _replaced(own.CheckpointFunction, "apply", refusing), _replaced(own, _CHECKPOINT, refusing):
        yield


_CHECKPOINT: Final = "_checkpoint_without_reentrant_generator"


@contextmanager
def _replaced(owner: object, name: str, value_for: Callable[[Any], object]) -> Iterator[None]:
    is_own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value_for(before))
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Refuse a forward that writes attributes, or into buffers, and take back what the trace wrote."""
    before = [(name, module, dict(module.__dict__)) for name, module in model.named_modules()]
    values = [(name, buffer, buffer.detach().clone()) for name, buffer in model.named_buffers()]
    written: list[str] = []
    try:
        yield
    finally:
        for name, buffer, value in values:
            if not _is_same(buffer, value):
                buffer.copy_(value)
                written.append(name)
        for name, module, attributes in before:
            own = module.__dict__
            changed = [key for key in own if key not in attributes or own[key] is not attributes[key]]
            written += [f"{name}.{key}" if name else key for key in changed]
            for key in changed:
                del own[key]
            own.update(attributes)
    if written:
        made = [name for name in written if "_tensor_constant" in name]
        message = (
            "its forward makes a tensor that would be baked into the graph"
            if made
            else f"its forward writes {written[0]!r}"
        )
        raise Refused(message)


def _is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether all values are equal; what is not a number equals itself here."""
    return tensor.is_meta or bool(((tensor == other) | (tensor.isnan() & other.isnan())).all())


def _merged(train: _Tracer, evaluation: _Tracer) -> fx.Graph:
    """The graph of both modes: flags ``training`` that were constants in each become attributes that are read."""
    pairs = list(zip(train.graph.nodes, evaluation.graph.nodes, strict=False))
    same = len(train.graph.nodes) == len(evaluation.graph.nodes)
    if not same or any((a.op, a.name, a.target) != (b.op, b.name, b.target) for a, b in pairs):
        raise Refused(_BAKED_IN)
    graph = evaluation.graph
    for first, node in pairs:
        flags: dict[str, fx.Node] = {}
        owner = evaluation.owners.get(node.name, "")

        def flag(node: fx.Node = node, owner: str = owner, flags: dict[str, fx.Node] = flags) -> fx.Node:
            if owner not in flags:
                with graph.inserting_before(node):
                    flags[owner] = graph.create_node("get_attr", f"{owner}.{_TRAINING}" if owner else _TRAINING)
            return flags[owner]

        node.args = _merged_values(first.args, node.args, flag)
        node.kwargs = _merged_values(dict(first.kwargs), dict(node.kwargs), flag)
    return graph


def _merged_values(train: Any, evaluation: Any, flag: Callable[[], fx.Node]) -> Any:  # noqa: ANN401  any argument
    if isinstance(evaluation, fx.Node):
        if isinstance(train, fx.Node) and train.name == evaluation.name:
            return evaluation
        raise Refused(_BAKED_IN)
    if isinstance(evaluation, tuple | list) and isinstance(train, tuple | list) and len(train) == len(evaluation):
        items = [_merged_values(a, b, flag) for a, b in zip(train, evaluation, strict=True)]
        return type(evaluation)(*items) if hasattr(evaluation, "_fields") else type(evaluation)(items)
    if isinstance(evaluation, Mapping) and isinstance(train, Mapping) and train.keys() == evaluation.keys():
        return {key: _merged_values(train[key], evaluation[key], flag) for key in evaluation}
    if isinstance(evaluation, slice) and isinstance(train, slice):
        parts = ((getattr(train, part), getattr(evaluation, part)) for part in ("start", "stop", "step"))
        return slice(*(_merged_values(a, b, flag) for a, b in parts))
    if train is True and evaluation is False:
        return flag()
    if type(train) is type(evaluation) and (train is evaluation or train == evaluation):
        return evaluation
    raise Refused(_BAKED_IN)
