"""Who feeds whom: found by running the model once and watching, without tracing it.

`torch.fx` and `torch.export` refuse many models, and a traced graph is not the model that the user runs. Watching
every operation of a run on tensors that came out of a norm or a layer tells all that folding a scale needs to know:
which layers read such a tensor, and whether anything else does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from inc_torch.core.modes import evaluating
from inc_torch.core.names import named_layers
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule, input_channels
from inc_torch.quantizers._producers import absorbing_axis, can_produce, own_tensors

__all__ = ["Flow", "trace_flow"]

_aten = torch.ops.aten
_LOOKED_THROUGH: Final = frozenset(
    {
        _aten.relu,
        _aten.relu_,
        _aten.leaky_relu,
        _aten.leaky_relu_,
        _aten._to_copy,
        _aten.clone,
        _aten.detach,
        _aten.alias,
    }
)
"""Operations on each value with ``f(x / s) == f(x) / s`` for all ``s > 0``. In eval, dropout is no operation at all."""

_ESCAPES: Final = "what outlives the forward, such as the output of the model"


@final
class Flow(NamedTuple):
    """Which layers can have a scale folded into the module before them.

    Attributes:
        groups: By the name of a module that absorbs scales: all that reads its output, layers of one scale.
        refused: By the name of every other layer that could be smoothed: why folding is impossible.
    """

    groups: dict[str, tuple[str, ...]]
    refused: dict[str, str]


def trace_flow(model: nn.Module, run: Callable[[nn.Module], object], layers: Collection[str] | None = None) -> Flow:
    """Run a model in eval mode and find where scales can be folded.

    A scale of the input channels of a layer can go into the module before it if that module feeds nothing but layers
    (all of them then share the scale), directly or through operations on each value that are positively homogeneous:
    relu, leaky_relu, a product with what does not follow such a module, dropout in eval, casts between floating types,
    copies. Residual sums, views, being part of the
    model's output, and whatever else reads the tensor forbid it. So do weights that other modules share or read, and
    norms whose output does not follow their weight, or that have none.

    What leaves torch, as ``.numpy()`` does, is not seen.

    Modules that absorb are norms (every class with ``Norm`` in its name), linear layers and convolutions.

    INC 2.6.1 looks into a `torch.jit` trace and gives up smoothing where that fails; looks through hardtanh, which is
    not homogeneous; believes norms by their class name; and makes a weight for norms without one, which are refused
    here, as the state dict would change.

    Args:
        model: In float, or prepared with fake-quant off; in the mode in which it was, afterwards.
        run: Calls the model on a batch or more.
        layers: Names of linear layers and convolutions whose inputs may be scaled; None is all of a prepared model.

    Example:
        >>> from inc_torch.quantizers import QuantSpec, prepare_fake_quant
        >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> _ = prepare_fake_quant(model, QuantSpec())
        >>> trace_flow(model, lambda model: model(torch.randn(2, 4))).groups
        {'0': ('1',), '1': ('3',)}
    """
    watcher = _Watcher(model, layers)
    with evaluating(model), watcher.hooked(model), torch.no_grad(), watcher:
        result = run(model)
        watcher.note_escapes()
    del result
    return watcher.flow(model)


@final
@dataclass(slots=True)
class _Producer:
    """What was seen of one module that may absorb a scale.

    Attributes:
        axis: Its channels in its output; None if it absorbs nothing.
        layers: Names of the layers that read its output, in order.
        others: What else does.
    """

    axis: int | None = None
    has_run: bool = False
    layers: dict[str, None] = field(default_factory=dict)
    others: dict[str, None] = field(default_factory=dict)


@final
class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Follows the outputs of producers through a run."""

    def __init__(self, model: nn.Module, layers: Collection[str] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        modules = dict(named_layers(model))
        self._layers = {
            name: module
            for name, module in modules.items()
            if (isinstance(module, FakeQuantModule) and module.has_input_grid if layers is None else name in layers)
        }
        self._makers = {name: module for name, module in modules.items() if can_produce(module)}
        self._producers = {name: _Producer() for name in self._makers}
        self._sources: dict[str, dict[str | None, None]] = {name: {} for name in self._layers}
        self._origins: MutableMapping[torch.Tensor, str] = WeakTensorKeyDictionary()
        self._owners: dict[int, str] = {
            id(tensor): name for name, module in self._makers.items() for tensor in own_tensors(module).values()
        }
        self._read_elsewhere: set[str] = set()
        self._running: list[str] = []
        self._paused = False

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Do the operation and note whose outputs it read."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._paused and not self._is_in_layer():
            read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
            for value in read:
                self._note(func, value, result, is_alone=sum(other in self._origins for other in read) == 1)
        return result

    def _is_in_layer(self) -> bool:
        return bool(self._running) and self._running[-1] in self._layers

    def _note(self, func: OpOverload[..., Any], value: torch.Tensor, result: object, *, is_alone: bool) -> None:
        owner = self._owners.get(id(value))
        if owner is not None and owner not in self._running:
            self._read_elsewhere.add(owner)
        origin = self._origins.get(value)
        if origin is None:
            return
        packet = func.overloadpacket
        follows = packet in _LOOKED_THROUGH or (packet is _aten.mul and is_alone)
        if follows and isinstance(result, torch.Tensor) and result.is_floating_point() and result.shape == value.shape:
            self._origins[result] = origin
        else:
            self._producers[origin].others[str(func.overloadpacket)] = None

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Watch what goes into layers and out of producers."""
        with ExitStack() as hooks:
            for name, module in self._makers.items():
                handles = [
                    module.register_forward_pre_hook(self._entering(name), with_kwargs=True),
                    module.register_forward_hook(self._leaving(name), prepend=True, with_kwargs=True),
                ]
                for handle in handles:
                    hooks.callback(handle.remove)
            hooks.callback(model.register_forward_hook(lambda *_: self.note_escapes()).remove)
            yield

    def note_escapes(self) -> None:
        """Whatever is alive when a forward has ended was kept by somebody."""
        for origin in list(self._origins.values()):
            self._producers[origin].others[_ESCAPES] = None

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._paused:
                return
            if name in self._layers:
                self._read_by(name, module, next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)))
            self._running.append(name)

        return enter

    def _read_by(self, name: str, module: nn.Module, value: torch.Tensor) -> None:
        origin = self._origins.get(value)
        self._sources[name][origin] = None
        if origin is None:
            return
        producer = self._producers[origin]
        axis = value.dim() - 1 - len(getattr(module, "kernel_size", ()))
        if producer.axis in (None, axis) and value.shape[axis] == input_channels(module):
            producer.layers[name] = None
        else:
            producer.others[f"{name!r}, which takes another axis for channels"] = None

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            if self._paused:
                return
            self._running.pop()
            producer = self._producers[name]
            if not isinstance(output, torch.Tensor):
                producer.others["something, as a part of a collection"] = None
                return
            if not producer.has_run:
                producer.axis, producer.has_run = self._tried(module, args, kwargs, output), True
            if (inner := self._origins.get(output)) is not None:
                self._producers[inner].others[f"{name!r}, which hands it on"] = None
            self._origins[output] = name

        return leave

    def _tried(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> int | None:
        self._paused = True
        try:
            return absorbing_axis(module, args, kwargs, output)
        finally:
            self._paused = False

    def flow(self, model: nn.Module) -> Flow:
        """What was seen, judged."""
        owners = Counter(
            id(tensor)
            for _, module in named_layers(model)
            for tensor in module._parameters.values()
            if tensor is not None
        )
        shared = {
            name
            for name, module in self._makers.items()
            if any(owners[id(tensor)] > 1 for tensor in own_tensors(module).values())
        }
        groups = {
            name: tuple(producer.layers)
            for name, producer in self._producers.items()
            if producer.layers and self._reason_of_producer(name, shared) is None
        }
        taken = {layer for layers in groups.values() for layer in layers}
        refused = {name: self._reason_of_layer(name, shared) for name in self._layers if name not in taken}
        return Flow(groups, refused)

    def _reason_of_layer(self, name: str, shared: set[str]) -> str:
        sources = list(self._sources[name])
        if not sources:
            return "it did not run"
        if sources == [None]:
            return "no norm or layer feeds it directly"
        own = self._reason_of_reader(name, shared)
        first = next(source for source in sources if source is not None)
        return own or self._reason_of_producer(first, shared) or f"{first!r} cannot absorb a scale"

    def _reason_of_producer(self, name: str, shared: set[str]) -> str | None:
        producer, module = self._producers[name], self._makers[name]
        if "weight" not in own_tensors(module):
            return f"{name!r}, which feeds it, has no weight"
        if producer.axis is None:
            return f"the output of {name!r}, which feeds it, does not follow its weight"
        if reason := self._reason_of_weight(name, shared):
            return f"{name!r}, which feeds it: {reason}"
        if producer.others:
            return f"{name!r}, which feeds it, also feeds {', '.join(producer.others)}"
        for layer in producer.layers:
            if reason := self._reason_of_reader(layer, shared):
                return f"{layer!r}, which reads the same: {reason}"
        return None

    def _reason_of_reader(self, name: str, shared: set[str]) -> str | None:
        if len(self._sources[name]) > 1:
            return "it reads several tensors, which different modules make"
        return self._reason_of_weight(name, shared)

    def _reason_of_weight(self, name: str, shared: set[str]) -> str | None:
        if name in shared:
            return "its weight is shared with another module"
        return "its weight is also read outside its forward" if name in self._read_elsewhere else None
