"""Programs that the extension runs, traced once for each way in which the model is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, final

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from inc_torch.core.batches import Inputs
from inc_torch.core.errors import ModelError
from inc_torch.core.program import Program
from inc_torch.ipex._observation import quiet
from inc_torch.ipex._overwriting import keep_apart
from inc_torch.ipex._summary import Summary

__all__ = ["IpexProgram"]

_WARM_UPS: Final = 2
"""Runs until the extension has compiled for the shapes of a program."""


class _Call(NamedTuple):
    """What makes two calls the same program: all but the tensors."""

    spec: str
    constants: tuple[str, ...]


class _Traced(NamedTuple):
    graph: Any
    spec: TreeSpec
    leaves: list[Any]


@final
class _Flat(nn.Module):
    """A converted model that takes and gives a row of tensors.

    Args:
        model: The model that the extension converted.
        spec: How the arguments are nested.
        leaves: The arguments, with None for tensors.
        dtypes: What tensors come out in.
    """

    def __init__(self, model: nn.Module, spec: TreeSpec, leaves: list[Any], dtypes: list[torch.dtype]) -> None:
        super().__init__()
        self.model = model
        self._spec, self._leaves, self._dtypes = spec, leaves, dtypes

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute."""
        rest = iter(tensors)
        leaves = [next(rest) if leaf is _TENSOR else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._spec)
        made = [leaf for leaf in tree_flatten(self.model(*args, **kwargs))[0] if isinstance(leaf, torch.Tensor)]
        return tuple(tensor.to(dtype) for tensor, dtype in zip(made, self._dtypes, strict=True))


@contextmanager
def _calling_modules() -> Iterator[None]:
    """Keep torch's attention from reading weights past the modules that hold them: the extension has reordered them."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


@final
class _Placeholder:
    """Stands where a tensor is."""

    def __repr__(self) -> str:
        return "tensor"


_TENSOR: Final = _Placeholder()


@final
class IpexProgram(Program):
    """The forward of a model on the kernels of the extension.

    Calls that differ in more than the values and shapes of tensors, as in which arguments are given, are traced when
    they first come. Autocast of the caller makes no difference: parts that compute in bfloat16 turn it on themselves.

    Args:
        model: The model, whose own forward says what comes out.
        converted: What the extension made of it.
        summary: How its int8 operations are computed; None if there is none.
        example: One call; None if the first one is to be traced when it comes.
    """

    runs_on = "Intel Extension for PyTorch"
    way_back = "Call inc_torch.ipex.withdraw(model) first, which gives it back to the default backend."

    def __init__(
        self,
        model: nn.Module,
        converted: Any,  # noqa: ANN401  a class that the extension makes
        summary: Summary | None,
        example: Inputs | None,
    ) -> None:
        self.summary, self.example = summary, example
        self._model, self._converted = model, converted
        self._traced: dict[_Call, _Traced] = {}
        self.__signature__ = inspect.signature(type(model).forward.__get__(model))
        self.__name__ = "forward"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  those of the model
        """Compute as the model does."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            traced, leaves = self._traced_for(args, kwargs)
            made = iter(traced.graph(*(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))))
        return tree_unflatten([next(made) if leaf is _TENSOR else leaf for leaf in traced.leaves], traced.spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> IpexProgram:
        """A program of the copied model, which shares what was traced, as that never changes."""
        model = memo.get(id(self._model), self._model)
        copy = IpexProgram(model, self._converted, self.summary, self.example)
        copy._traced = self._traced
        return copy

    def graph(self, inputs: Inputs) -> Any:  # noqa: ANN401  TorchScript
        """The TorchScript that runs for a call, to be looked at."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self._traced_for(inputs.args, inputs.kwargs)[0].graph

    def _traced_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[_Traced, list[Any]]:
        """What runs for a call, and its arguments as ``forward`` binds them: names and places make no difference."""
        bound = self.__signature__.bind(*args, **kwargs)
        leaves, spec = tree_flatten((bound.args, bound.kwargs))
        call = _Call(str(spec), tuple(repr(leaf) for leaf in leaves if not isinstance(leaf, torch.Tensor)))
        if call not in self._traced:
            self._traced[call] = self._trace(spec, leaves)
        return self._traced[call], leaves

    def _trace(self, spec: TreeSpec, leaves: list[Any]) -> _Traced:
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if not tensors:
            message = f"{type(self._model).__name__} was called without a tensor: expected at least one."
            raise ModelError(message)
        args, kwargs = tree_unflatten(leaves, spec)
        expected, expected_spec = tree_flatten(type(self._model).forward(self._model, *args, **kwargs))
        dtypes = [leaf.dtype for leaf in expected if isinstance(leaf, torch.Tensor)]
        held = [_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        flat = _Flat(self._converted, spec, held, dtypes)
        with quiet():
            try:
                with _calling_modules():
                    graph = torch.jit.trace(flat.eval(), tuple(tensors), check_trace=False, strict=False)  # type: ignore[no-untyped-call]
                graph = torch.jit.freeze(graph)
                keep_apart(graph.graph)
            except (RuntimeError, TypeError, AttributeError, AssertionError, KeyError, ValueError) as error:
                message = (
                    f"{type(self._model).__name__} cannot be traced for the extension as it is called: "
                    f"{type(error).__name__}: {error}. Call it as the example_inputs of the configuration do, or leave "
                    "backend='ipex' out: the default backend needs no trace."
                )
                raise ModelError(message) from error
            for _ in range(_WARM_UPS):
                graph(*tensors)
        return _Traced(graph, expected_spec, [_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in expected])
