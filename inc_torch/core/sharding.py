"""Weights that `torch.distributed.fsdp.fully_shard` (FSDP2) spreads over ranks, and the way back to a plain model.

FSDP2 wraps nothing. A module that it shards gets a class ``FSDP<Class>``, derived from ``FSDPModule`` and its own, and
hooks; Parameters become ``DTensor``, of which every rank holds a part. In a forward they are plain and whole.

What gathers is a collective: every rank calls it, for the same tensors in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

from inc_torch.core.errors import ModelError

__all__ = [
    "exchange_class",
    "gather_parameters_",
    "held",
    "plain_class",
    "release_shards_",
    "require_unshardable",
    "unshard_model_",
    "whole",
]

_FSDP = "torch.distributed.fsdp"
_MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")
"""What FSDP writes on modules to tell torch.compile."""
_REGISTRY = "__composable_api_state_key"
"""Under keys that begin so, a module's ``__dict__`` has what torch's composable APIs keep about it, by function."""


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor as a plain one, gathered from all ranks; any other as it is.

    Example:
        >>> weight = torch.ones(2)
        >>> whole(weight) is weight
        True
    """
    if not _is_sharded(tensor):
        return tensor
    shards: Any = tensor.detach()
    gathered: torch.Tensor = shards.to(shards.device_mesh.device_type).full_tensor()
    return gathered.to(tensor.device)  # which differ where FSDP keeps its shards on the CPU


def held(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a sharded tensor, sharing its memory; any other as it is.

    Example:
        >>> weight = torch.ones(2)
        >>> held(weight) is weight
        True
    """
    if not _is_sharded(tensor):
        return tensor
    shards: Any = tensor
    part: torch.Tensor = shards.to_local()
    return part


def plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that ``fully_shard`` derived ``kind`` from, or ``kind`` itself.

    Example:
        >>> plain_class(nn.Linear).__name__
        'Linear'
    """
    position = _position_of_fsdp(kind)
    return kind if position is None else kind.__mro__[position + 1]


def exchange_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make ``module`` a ``kind``, and leave it sharded if it is."""
    position = _position_of_fsdp(type(module))
    module.__class__ = kind if position is None else _sharded_class(type(module).__mro__[position - 1], kind)


def _position_of_fsdp(kind: type[nn.Module]) -> int | None:
    """Where ``FSDPModule`` stands in the order of bases: after the class of the sharded, before the original one."""
    names = [base.__name__ for base in kind.__mro__]
    return names.index("FSDPModule") if "FSDPModule" in names else None


_SHARDED_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _sharded_class(sharded: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    """What ``fully_shard`` would have made of ``kind``, as it made ``sharded`` of another class."""
    if (sharded, kind) not in _SHARDED_CLASSES:
        bases = (*sharded.__bases__[:-1], kind)
        namespace = {"__deepcopy__": vars(sharded)["__deepcopy__"]}
        _SHARDED_CLASSES[sharded, kind] = type(f"FSDP{kind.__name__}", bases, namespace)
    return _SHARDED_CLASSES[sharded, kind]


def unshard_model_(model: nn.Module) -> None:
    """Turn a model that ``fully_shard`` was applied to back into a plain one on every rank, in place.

    Modules have the classes that they had before (what was derived from the sharded class goes too), no hook of FSDP
    is left, and Parameters are new plain ones that hold the whole values; tied ones stay tied. Gradients are not
    kept. A plain model is left as it is.

    Raises:
        ModelError: Something else has a share in the sharding, see `require_unshardable`.
    """
    require_unshardable(model)
    release_shards_(model)
    gather_parameters_(model)


def require_unshardable(model: nn.Module) -> None:
    """Make sure that `unshard_model_` can do its work.

    Raises:
        ModelError: A Parameter is sharded by a module around ``model``, or by tensor parallelism.
    """
    for name, parameter, is_fsdp in _sharded_parameters("", model, is_fsdp=False):
        splits = [str(placement) for placement in parameter.placements if not placement.is_replicate()]
        if len(splits) > 1:
            reason = f"it is sharded more than once ({', '.join(splits)}), as by tensor parallelism"
        elif not is_fsdp:
            reason = "neither its module nor one that holds it was given to fully_shard"
        else:
            continue
        message = (
            f"{plain_class(type(model)).__name__} cannot be made plain again: its Parameter {name!r} is a DTensor, and "
            f"{reason}. Shard the model with torch.distributed.fsdp.fully_shard alone, and call it on the model "
            "itself, not on a module around it."
        )
        raise ModelError(message)


def release_shards_(model: nn.Module) -> None:
    """Take FSDP's hooks and classes away from all modules; their Parameters stay shards until they are gathered."""
    modules = list(model.modules())
    sharded: list[Any] = [module for module in modules if _position_of_fsdp(type(module)) is not None]
    for module in sharded:
        module.reshard()  # or else what lies in the module may be a gathered copy of lower precision
    for module in modules if sharded else ():
        _release(module)


def gather_parameters_(model: nn.Module) -> None:
    """Replace every sharded Parameter that is left in ``model`` by a plain one with the whole values."""
    gathered: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and _is_sharded(parameter):
                if parameter not in gathered:
                    gathered[parameter] = nn.Parameter(whole(parameter), parameter.requires_grad)
                module._parameters[name] = gathered[parameter]


def _is_sharded(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, without the import


def _sharded_parameters(name: str, module: nn.Module, *, is_fsdp: bool) -> Iterator[tuple[str, Any, bool]]:
    """Name and Parameter of all that is sharded, and whether ``fully_shard`` was called on what it belongs to."""
    is_fsdp = is_fsdp or _position_of_fsdp(type(module)) is not None
    for own, parameter in module._parameters.items():
        if parameter is not None and _is_sharded(parameter):
            yield f"{name}{own}", parameter, is_fsdp
    for own, child in module.named_children():
        yield from _sharded_parameters(f"{name}{own}.", child, is_fsdp=is_fsdp)


def _release(module: nn.Module) -> None:
    module.__class__ = plain_class(type(module))
    own = vars(module)
    tables = [table for name, table in own.items() if "_hooks" in name and isinstance(table, dict)]
    hooks = {key for table in tables for key, hook in table.items() if _is_of_fsdp(hook)}
    for table in tables:
        for key in hooks & table.keys():
            del table[key]
    wrapped = [name for name, value in own.items() if isinstance(value, MethodType) and _is_of_fsdp(value)]
    for name in [*wrapped, *(own.keys() & set(_MARKS))]:
        del own[name]
    for name in [name for name in own if name.startswith(_REGISTRY)]:
        for function in [key for key in own[name] if getattr(key, "__name__", key) == "fully_shard"]:
            del own[name][function]
    _forget(module)


def _forget(module: nn.Module) -> None:
    """Take ``module`` out of torch's table of sharded modules, where others look it up and where it must be once."""
    from torch.distributed import _composable_state  # not in every build of torch

    _composable_state._module_state_mapping.pop(module, None)


def _is_of_fsdp(function: object) -> bool:
    """Whether FSDP defined ``function``, be it under the name of a method that it wraps."""
    function = getattr(function, "hook", function)  # torch puts hooks of load_state_dict into an object
    function = getattr(function, "__func__", function)
    home = getattr(function, "__globals__", {}).get("__name__", "")
    return f"{home}.".startswith(f"{_FSDP}.")
