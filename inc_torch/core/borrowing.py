"""Copies of a model that borrow its weights, and give them up one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import nn

from inc_torch.core.errors import ModelError

__all__ = ["Snapshot", "borrowing_copy", "own_parameters_"]


def borrowing_copy(model: nn.Module, lent: Iterable[torch.Tensor] = ()) -> nn.Module:
    """Copy a model, but for its Parameters, which both have afterwards: the copy takes almost no memory.

    Whoever changes a Parameter of the copy has to give it a new one, see `own_parameters_`. Tables of embeddings with
    ``max_norm`` are copied, because each forward shortens rows of them.

    Args:
        model: The model.
        lent: Buffers that both have afterwards too.

    Raises:
        ModelError: The model holds something that cannot be copied.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> other = borrowing_copy(layer)
        >>> other is layer, other.weight is layer.weight
        (False, True)
    """
    written = {id(module._parameters.get("weight")) for module in model.modules() if _writes_weight(module)}
    shared: dict[int, torch.Tensor] = {
        id(parameter): parameter for parameter in model.parameters() if id(parameter) not in written
    }
    try:
        return copy.deepcopy(model, memo={**shared, **{id(tensor): tensor for tensor in lent}})
    except Exception as error:
        message = (
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}. Pass inplace=True to change "
            "the model itself, or take out of it what cannot be copied, such as open files, locks and generators."
        )
        raise ModelError(message) from error


def _writes_weight(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None


@final
class Snapshot:
    """What every module of a model is now: class, attributes, children, which tensors it has; no tensor is copied.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before, weight = Snapshot(layer), layer.weight
        >>> layer.weight = nn.Parameter(torch.zeros(3, 2))
        >>> before.restore_()
        >>> layer.weight is weight
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, type(module), _attributes(module)) for module in model.modules()]

    def restore_(self) -> None:
        """Make every module again what it was; values that were written into its tensors stay."""
        for module, kind, attributes in self._modules:
            module.__class__ = kind
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
            for name, value in attributes.items():
                if name in _HELD:
                    module.__dict__[name].clear()
                    module.__dict__[name].update(value)
                else:
                    module.__dict__[name] = value

    def tensors(self) -> frozenset[int]:
        """The identities of all Parameters and buffers that the model had."""
        held = (attributes[name] for _, _, attributes in self._modules for name in ("_parameters", "_buffers"))
        return frozenset(id(tensor) for tensors in held for tensor in tensors.values() if tensor is not None)


_HELD = ("_parameters", "_buffers", "_modules")
"""Dicts that torch hands out, so that they stay the same objects."""


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: dict(value) if name in _HELD else value for name, value in module.__dict__.items()}


def own_parameters_(model: nn.Module, lender: nn.Module) -> None:
    """Give ``model`` Parameters of its own instead of those borrowed from ``lender``; tied ones stay tied."""
    borrowed = {id(parameter) for parameter in lender.parameters()}
    own: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) not in borrowed:
                continue
            if id(parameter) not in own:
                own[id(parameter)] = _cloned(parameter)
            module._parameters[name] = own[id(parameter)]


def _cloned(parameter: nn.Parameter) -> nn.Parameter:
    with torch.no_grad():
        return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
