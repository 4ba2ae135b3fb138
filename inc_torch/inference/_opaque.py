"""Int8 modules as single nodes of a captured graph."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, cast

import torch
from torch import nn

from inc_torch.quantizers import (
    Int8Conv1d,
    Int8Conv2d,
    Int8Conv3d,
    Int8DynamicLinear,
    Int8Linear,
    Int8Snap,
    output_dtype,
)

__all__ = ["INT8_MODULE", "can_hide", "hidden_module", "hide"]

_HANDLE: Final = "_inc_torch_handle"
_OWN: Final = (_HANDLE, "_compiled_call_impl")
"""What copies of a module do not get."""
_numbers = itertools.count()
_modules: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
_hidden_classes: dict[type[nn.Module], type[nn.Module]] = {}


_captures: list[int] = []
"""The thread of each `capturing` that is open."""


@contextmanager
def capturing() -> Iterator[None]:
    """Let hidden modules be nodes for tracers that `torch.compile` has no part in."""
    _captures.append(threading.get_ident())
    try:
        yield
    finally:
        _captures.remove(threading.get_ident())


def _is_captured() -> bool:
    """Whether a graph for this process is made; one that is exported must do without our operator."""
    # Not is_exporting(): Dynamo of torch 2.8 takes that for true in every graph. Newer ones read this flag for it.
    if torch.compiler.is_compiling():
        return not torch.compiler._is_exporting_flag
    return threading.get_ident() in _captures


class _Hidden(Protocol):
    def plain_forward(self, input: torch.Tensor) -> torch.Tensor: ...  # noqa: A002  torch's argument name


def hidden_module(handle: int) -> nn.Module:
    """The module that a node of `INT8_MODULE` calls."""
    return _modules[handle]


def can_hide(module: nn.Module) -> bool:
    """Whether a call of ``module`` can become one node."""
    return isinstance(module, Int8Linear | Int8DynamicLinear | Int8Conv1d | Int8Conv2d | Int8Conv3d | Int8Snap)


def hide(module: nn.Module) -> None:
    """Let ``module`` appear in a captured graph as one call of `INT8_MODULE`; twice is once.

    Its class becomes a subclass of the same name. A copy of the module computes by itself.
    """
    if _HANDLE not in module.__dict__:
        handle = next(_numbers)
        module.__dict__[_HANDLE] = handle
        _modules[handle] = module
        exchange: Any = module
        exchange.__class__ = _hidden_class(type(module))


def _hidden_class(original: type[nn.Module]) -> type[nn.Module]:
    if original not in _hidden_classes:
        _hidden_classes[original] = _make_class(original)
    return _hidden_classes[original]


def _make_class(original: type[nn.Module]) -> type[nn.Module]:
    plain_forward: Any = original.forward

    def forward(self: Any, input: torch.Tensor) -> torch.Tensor:  # noqa: A002, ANN401  torch's argument name
        if _is_captured() and _HANDLE in self.__dict__:
            hidden: torch.Tensor = INT8_MODULE(input, self.__dict__[_HANDLE], output_dtype(input))
            return hidden
        return plain_forward(self, input)  # type: ignore[no-any-return]

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401  SupportsIndex, as in object
        if original.__reduce_ex__ is object.__reduce_ex__:
            reduced: Any = _empty, (original,), self.__getstate__()
        else:
            reduced = original.__reduce_ex__(self, protocol)
        state = {name: value for name, value in reduced[2].items() if name not in _OWN}
        return *reduced[:2], state

    namespace = {
        "forward": forward,
        "plain_forward": plain_forward,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce,
    }
    return type(original.__name__, (original,), namespace)


def _empty(original: type[nn.Module]) -> nn.Module:
    """The plain module that pickle and deepcopy fill."""
    return original.__new__(original)


@torch.library.custom_op(
    "inc_torch::int8_module", mutates_args=(), schema="(Tensor input, int handle, ScalarType dtype) -> Tensor"
)  # a schema, as annotations are strings here
def _run(input: torch.Tensor, handle: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: A002  torch's argument name
    result = cast("_Hidden", _modules[handle]).plain_forward(input).to(dtype)
    return result.clone() if result.data_ptr() == input.data_ptr() else result


@_run.register_fake
def _(input: torch.Tensor, handle: int, dtype: torch.dtype) -> torch.Tensor:  # noqa: A002  torch's argument name
    module = hidden_module(handle)
    if isinstance(module, Int8Conv1d | Int8Conv2d | Int8Conv3d):
        values, padding = module._padded(input)
        convolve: Any = (torch.conv1d, torch.conv2d, torch.conv3d)[module.rank - 1]
        weight = values.new_empty(module.weight_shape)
        result = convolve(values, weight, None, module.stride, list(padding), module.dilation, module.groups)
        result = result.contiguous(memory_format=_layout_of(input))
    elif isinstance(module, Int8Snap):
        result = torch.empty_like(input)
    else:
        outputs = cast("Int8Linear", module).weight_shape[0]
        result = input.new_empty((*input.shape[:-1], outputs))
    shaped: torch.Tensor = result.to(dtype)
    return shaped


def _layout_of(input: torch.Tensor) -> torch.memory_format:  # noqa: A002  as above
    """How int8 convolutions lay out what they make of ``input``."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    is_last = last is not None and not input.is_contiguous() and input.is_contiguous(memory_format=last)
    return last if last is not None and is_last else torch.contiguous_format


def _let_no_gradient_through(ctx: Any, inputs: object, output: torch.Tensor) -> None:  # noqa: ANN401, ARG001
    ctx.mark_non_differentiable(output)


def _no_gradients(ctx: object, gradient: object) -> tuple[None, None, None]:  # noqa: ARG001
    return None, None, None


_run.register_autograd(_no_gradients, setup_context=_let_no_gradient_through)


INT8_MODULE: Final[Any] = torch.ops.inc_torch.int8_module.default
"""Calls the int8 module of a handle; outside of autocast too it returns the dtype that it was captured with."""
