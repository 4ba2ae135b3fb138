"""Copies of a model that borrow its weights, and give them up one by one."""

from __future__ import annotations

import copy

import torch
from torch import nn

from inc_torch.core.errors import ModelError

__all__ = ["borrowing_copy", "own_parameters_"]


def borrowing_copy(model: nn.Module) -> nn.Module:
    """Copy a model, but for its Parameters, which both have afterwards: the copy takes almost no memory.

    Whoever changes a Parameter of the copy has to give it a new one, see `own_parameters_`.

    Raises:
        ModelError: The model holds something that cannot be copied.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> other = borrowing_copy(layer)
        >>> other is layer, other.weight is layer.weight
        (False, True)
    """
    shared = {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, memo=dict(shared))
    except Exception as error:
        message = (
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}. Pass inplace=True to change "
            "the model itself, or take out of it what cannot be copied, such as open files, locks and generators."
        )
        raise ModelError(message) from error


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
