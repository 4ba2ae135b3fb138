"""Make sure that a graph computes what its model does, on real inputs of several shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only

from inc_torch.core.modes import evaluating, without_compiling
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule

__all__ = ["reason_against"]

_IMAGE_RANK: Final = 4
_MATRIX_RANK: Final = 2
_FIRST: Final = "the first batch"
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")

Function = Callable[..., Any]


def reason_against(model: nn.Module, own: Function, graph: Function, inputs: tuple[Any, ...]) -> str | None:
    """Compare the graph with the model's own forward in evaluation, on ``inputs`` and on other shapes of them.

    Neither statistics nor the random state change, and hooks are not called.

    Args:
        model: Prepared.
        own: Its forward, a function of the model and its inputs.
        graph: The graph as such a function.
        inputs: Of one call.

    Returns:
        Why the graph is not the model, as a part of a sentence; None if it is.
    """
    with torch.no_grad(), evaluating(model), without_compiling(), _in_float(model), _without_hooks(model):
        reason = _compared(model, own, graph, inputs, _FIRST)
        reason = reason or _reason_of_rank(model, graph, inputs)
        for what, shaped in _other_shapes(inputs):
            reason = reason or _compared(model, own, graph, shaped, what)
    return reason


def _compared(model: nn.Module, own: Function, graph: Function, inputs: tuple[Any, ...], what: str) -> str | None:
    try:
        with _random_kept():
            expected = own(model, *_copied(inputs))
    except Exception as error:  # noqa: BLE001  the model does not take such inputs
        return f"in evaluation it fails on {what}: {type(error).__name__}" if what is _FIRST else None
    try:
        with _random_kept():
            found = graph(model, *_copied(inputs))
    except Exception as error:  # noqa: BLE001  whatever a wrong graph raises
        first = str(error).strip().split("\n")[0][:120]
        return f"its graph fails on {what}: {type(error).__name__}: {first}"
    if _is_equal(expected, found):
        return None
    return f"its graph gives something else on {what}: its code depends on shapes or values, or on what it kept"


def _copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a forward may write into."""
    copied: tuple[Any, ...] = tree_map_only(torch.Tensor, torch.Tensor.clone, inputs)
    return copied


def _is_equal(expected: object, found: object) -> bool:
    (first, structure), (second, other) = tree_flatten(expected), tree_flatten(found)
    if structure != other or type(expected) is not type(found):
        return False
    return all(_is_equal_leaf(a, b) for a, b in zip(first, second, strict=True))


def _is_equal_leaf(expected: object, found: object) -> bool:
    if not isinstance(expected, torch.Tensor) or not isinstance(found, torch.Tensor):
        return type(expected) is type(found) and bool(expected == found)
    try:
        torch.testing.assert_close(found, expected, equal_nan=True)
    except AssertionError:
        return False
    return True


def _other_shapes(inputs: tuple[Any, ...]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The same inputs with another number of samples, and as smaller images."""
    tensors = [value for value in inputs if isinstance(value, torch.Tensor) and value.dim() > 0]
    if not tensors or any(len(value) != len(tensors[0]) for value in tensors) or not len(tensors[0]):
        return

    def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, ...]:
        return tuple(
            change(value) if isinstance(value, torch.Tensor) and value.dim() > 0 else value for value in inputs
        )

    if len(tensors[0]) > 1:
        yield "one sample", changed(lambda value: value[:1])
    else:
        yield "two samples", changed(lambda value: torch.cat([value, value]))
    images = [value for value in tensors if value.dim() == _IMAGE_RANK and value.is_floating_point()]
    if images:
        yield "images of another size", changed(lambda value: _cropped(value[:1]))


def _cropped(value: torch.Tensor) -> torch.Tensor:
    if value.dim() != _IMAGE_RANK or not value.is_floating_point():
        return value
    height, width = (max(1, size - max(1, size // 4)) for size in value.shape[-2:])
    return value[..., :height, :width].contiguous()


def _reason_of_rank(model: nn.Module, graph: Function, inputs: tuple[Any, ...]) -> str | None:
    """Batch normalization takes its channels from the axis after the batch, a linear layer from the last one."""
    ranks: dict[str, int] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: object, output: torch.Tensor) -> None:  # noqa: ARG001  a hook
            ranks[name] = output.dim()

        return note

    handles = [
        module.register_forward_hook(noting(name))
        for name, module in model.named_modules()
        if isinstance(module, FakeQuantModule) and module.kind == "linear" and module.norm is not None
    ]
    if not handles:
        return None
    try:
        graph(model, *_copied(inputs))
    finally:
        for handle in handles:
            handle.remove()
    wrong = next((name for name, rank in ranks.items() if rank != _MATRIX_RANK), None)
    return None if wrong is None else f"the batch normalization after {wrong!r} is not over its output channels"


@contextmanager
def _in_float(model: nn.Module) -> Iterator[None]:
    modules = [module for module in model.modules() if isinstance(module, FakeQuantModule)]
    flags = [(module._fake_quant, module._observing) for module in modules]
    for module in modules:
        module._fake_quant = module._observing = False
    try:
        yield
    finally:
        for module, (fake_quant, observing) in zip(modules, flags, strict=True):
            module._fake_quant, module._observing = fake_quant, observing


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    kept = [(module.__dict__, {name: module.__dict__[name] for name in _HOOKS}) for module in model.modules()]
    for own, hooks in kept:
        own.update({name: type(table)() for name, table in hooks.items()})
    try:
        yield
    finally:
        for own, hooks in kept:
            own.update(hooks)


@contextmanager
def _random_kept() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
