"""Taking channels out of layers, and back in if the model then computes something else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from inc_torch.core.batches import Inputs, output_of
from inc_torch.core.borrowing import Snapshot
from inc_torch.core.errors import ModelError
from inc_torch.core.sharding import plain_class
from inc_torch.pruners._matrix import MatrixView

__all__ = [
    "describes",
    "is_read",
    "keep_channels",
    "keep_passing",
    "undone",
    "undone_on_error",
    "with_equal_outputs",
]

_TOLERANCE = 1e-4
"""Of outputs, relative to their greatest magnitude: sums of fewer zeros round in another order."""


def keep_channels(module: nn.Module, kept: torch.Tensor, *, of_outputs: bool) -> None:
    """Keep these outputs, or inputs, of a linear layer or convolution; its Parameters are new ones then."""
    weight = module.get_parameter("weight")
    view = MatrixView.of(module, weight.shape)
    module.weight = _selected(weight, view.axes[0 if of_outputs else -1], kept)
    if of_outputs and isinstance(bias := module._parameters.get("bias"), nn.Parameter):
        module.bias = _selected(bias, 0, kept)
    for name in ("out_features", "out_channels", "nf") if of_outputs else ("in_features", "in_channels", "nx"):
        if hasattr(module, name):
            setattr(module, name, len(kept))


def keep_passing(module: nn.Module, kept: torch.Tensor, width: int) -> None:
    """Keep these of the ``width`` channels that a layer hands on: a batch norm, a depthwise convolution."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() and len(parameter) == width:
            setattr(module, name, _selected(parameter, 0, kept))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.dim() and len(buffer) == width:
            setattr(module, name, buffer[kept.to(buffer.device)])
    for name in ("num_features", "num_parameters", "in_channels", "out_channels", "groups"):
        if getattr(module, name, None) == width:
            setattr(module, name, len(kept))


def _selected(parameter: nn.Parameter, axis: int, kept: torch.Tensor) -> nn.Parameter:
    values = parameter.detach().index_select(axis, kept.to(parameter.device)).contiguous()
    return nn.Parameter(values, requires_grad=parameter.requires_grad)


def is_read(module: nn.Module) -> torch.Tensor:
    """Flat bool over the inputs of a linear layer or convolution: whether any of its weights looks at them."""
    weight = module.get_parameter("weight").detach()
    return MatrixView.of(module, weight.shape).ordered(weight).flatten(0, -2).any(0)


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Give a model its modules back after a while."""
    snapshot = Snapshot(model)
    try:
        yield
    finally:
        snapshot.restore_()


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Give a model its modules and its configuration back if an error leaves the block."""
    snapshot, config = Snapshot(model), copy.deepcopy(getattr(model, "config", None))
    try:
        yield
    except BaseException:
        snapshot.restore_()
        if config is not None:
            model.config.__dict__.update(config.__dict__)
            for name in model.config.__dict__.keys() - config.__dict__.keys():
                del model.config.__dict__[name]
        raise


def with_equal_outputs(model: nn.Module, inputs: Inputs, change: Callable[[], None]) -> None:
    """Change a model.

    Raises:
        ModelError: An output differs afterwards.
    """
    before = _outputs(model, inputs)
    change()
    for expected, found in zip(before, _outputs(model, inputs), strict=True):
        error = (expected - found).abs().max() if expected.numel() else expected.new_zeros(())
        greatest = expected.abs().max() if expected.numel() else error
        if not bool(error <= _TOLERANCE * greatest.clamp(min=1e-6)):
            message = (
                f"{type(model).__name__} computes something else without what was to be taken out: an output differs "
                f"by {float(error):.3g}, of {float(greatest):.3g} at most. Something else looks at these channels; the "
                "model is as it was."
            )
            raise ModelError(message)


def _outputs(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    leaves: list[Any] = tree_leaves(output_of(model, inputs))
    return [leaf.detach().clone() for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def describes(model: nn.Module, changed: Sequence[str] = ()) -> bool:
    """Whether a model made of its configuration has weights of the same shapes.

    Args:
        model: A model with a configuration of transformers.
        changed: Names of layers: only these are compared, all if there are none.
    """
    kind: Any = plain_class(type(model))
    try:
        with torch.device("meta"):
            fresh = kind(copy.deepcopy(model.config))
    except ValueError:  # it refuses such numbers
        return False
    shapes = {name: parameter.shape for name, parameter in fresh.named_parameters()}
    own = {name: parameter.shape for name, parameter in model.named_parameters()}
    names = [name for name in own if not changed or name.rpartition(".")[0] in changed]
    return all(shapes.get(name) == own[name] for name in names) and (bool(changed) or shapes.keys() == own.keys())
