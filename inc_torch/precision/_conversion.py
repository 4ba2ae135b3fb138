"""Which modules can compute in bfloat16, to it and back, and their description in files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import nn

from inc_torch.core.errors import ModelError, did_you_mean
from inc_torch.core.fast_paths import close_fast_paths
from inc_torch.core.sharding import plain_class
from inc_torch.precision._module import LAYERS, Bfloat16Module, transposed_linear

__all__ = [
    "compute_in_bfloat16",
    "compute_in_float",
    "known_classes",
    "reason_against",
    "reasons_against_bfloat16",
    "reasons_of_ties",
]


def known_classes() -> frozenset[type[nn.Module]]:
    """What can compute in bfloat16 alone; with the ``Conv1D`` of transformers once that is imported."""
    transposed = transposed_linear()
    return frozenset(LAYERS if transposed is None else (*LAYERS, transposed))


def compute_in_bfloat16(model: nn.Module, names: Iterable[str] = ("",)) -> None:
    """Let modules compute in bfloat16, in place, whatever dtype the rest of the model has.

    They take and give the dtype that they had, and only inside cast what comes in; their Parameters are cast once. The
    module objects, Parameters, names and hooks stay, and ``isinstance`` with the old classes holds. Weights that
    several modules share stay shared, which is why all of these have to be named. Doing it twice changes nothing.

    Args:
        model: The model that holds the modules; it is looked through for tied weights.
        names: Of the modules; by default ``model`` is the module itself.

    Raises:
        ModelError: A module cannot, see `reasons_against_bfloat16`. The model is then unchanged.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.LSTM(4, 2), nn.Identity())
        >>> compute_in_bfloat16(model, ["0"])
        >>> outputs, (state, cell) = model(torch.ones(3, 1, 4))
        >>> outputs.dtype, cell.dtype, model[0].weight_ih_l0.dtype
        (torch.float32, torch.float32, torch.bfloat16)

    Reference: INC 2.6.1 wraps modules, casts weights at each call, and fails on LSTM and GRU, whose outputs are tuples.
    """
    names = list(names)
    for name, reason in reasons_against_bfloat16(model, names).items():
        message = f"Module {name or '(root)'!r} of {type(model).__name__} cannot compute in bfloat16: {reason}."
        raise ModelError(message)
    modules = [module for module in map(model.get_submodule, names) if not isinstance(module, Bfloat16Module)]
    # Before any is cast, as tied weights are cast together.
    dtypes = {module: next(module.parameters()).dtype for module in modules}
    for module, dtype in dtypes.items():
        Bfloat16Module.adopt(module, plain_class(type(module)), dtype)
    close_fast_paths(model, (Bfloat16Module,))


def compute_in_float(model: nn.Module) -> None:
    """Undo `compute_in_bfloat16` in all of ``model``, in place; weights keep the values that bfloat16 left them.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> compute_in_bfloat16(layer)
        >>> compute_in_float(layer)
        >>> type(layer) is nn.Linear, layer.weight.dtype
        (True, torch.float32)
    """
    for module in model.modules():
        if isinstance(module, Bfloat16Module):
            module.release()


def reasons_against_bfloat16(model: nn.Module, names: Collection[str]) -> dict[str, str]:
    """Say which of these modules cannot compute in bfloat16 if all of them are to, and why.

    Only modules of exactly a known class can: a subclass, or its owner, may use the weight in another way. A weight
    that a module shares with one that is to stay in float would be cast under that one too.

    Args:
        model: The model that holds the modules.
        names: Of the modules.

    Returns:
        Reasons by name, as the end of a sentence. Without these names, the others can.

    Raises:
        ModelError: ``model`` has no module of such a name.

    Example:
        >>> reasons_against_bfloat16(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), ["0", "1"])
        {'1': 'LayerNorm is not one of the classes that can'}
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules:
            message = f"{type(model).__name__} has no module {name!r}.{did_you_mean(name, modules)}"
            raise ModelError(message)
    reasons = {name: reason for name in names if (reason := reason_against(modules[name])) is not None}
    while tied := reasons_of_ties(modules, [name for name in names if name not in reasons]):
        reasons |= tied
    return reasons


def reason_against(module: nn.Module) -> str | None:
    """Why a module alone cannot compute in half precision, as the end of a sentence; None if it can."""
    if isinstance(module, Bfloat16Module):
        return None
    own = plain_class(type(module))
    if own not in known_classes():
        bases = [base.__name__ for base in own.__mro__[1:] if base in known_classes()]
        if bases:
            return f"{own.__name__} is a subclass of {bases[0]}; what it or its owner does with the weight is not known"
        return f"{own.__name__} is not one of the classes that can"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    other = [str(parameter.dtype) for parameter in module.parameters() if not parameter.is_floating_point()]
    return f"its weight is {other[0]}" if other else None


def reasons_of_ties(modules: Mapping[str, nn.Module], names: Collection[str]) -> dict[str, str]:
    """Which of these modules share a Parameter with one that is neither among them nor inside one, as sentences."""
    chosen = {id(inner) for name in names for inner in modules[name].modules()}
    chosen.update(
        id(inner) for each in modules.values() if isinstance(each, Bfloat16Module) for inner in each.modules()
    )
    others = {
        id(parameter): name
        for name, module in modules.items()
        if id(module) not in chosen
        for parameter in module._parameters.values()
        if parameter is not None
    }
    return {
        name: f"it shares {leaf!r} with {others[id(parameter)]!r}, which is to stay as it is; name both, or neither"
        for name in names
        for leaf, parameter in modules[name].named_parameters(remove_duplicate=False)
        if id(parameter) in others
    }
