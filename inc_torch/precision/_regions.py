"""Which parts of a model compute in half precision as a whole, so that values need not be cast between its layers.

A *region* is the greatest part of the tree of modules in which every operation computes in half precision. Values are
cast where they enter and leave it. The fewer operations do, the smaller the regions: where none does, the model is the
float model, and where all do, the region is the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

import torch
from torch import nn
from torch.fx import GraphModule

from inc_torch.core.fast_paths import close_fast_paths
from inc_torch.core.sharding import plain_class
from inc_torch.precision._casting import FLOATS
from inc_torch.precision._conversion import known_classes, reason_against
from inc_torch.precision._flow import FlowingModule
from inc_torch.precision._module import Bfloat16Module, name_of

__all__ = ["compute_regions", "layers_of", "members_of", "operations_of", "regions_of", "ties_of"]

_CONTAINERS: Final = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, GraphModule)
"""They are not called, or have a forward that is made anew for each copy."""


def operations_of(model: nn.Module, stays: Callable[[nn.Module], str | None] = lambda _: None) -> dict[str, str | None]:
    """List the modules that a choice of precision is made for, each with what speaks against half precision, if any.

    Args:
        model: In float, or partly so.
        stays: Says of a module why it has to stay as it is; None if it need not.

    Returns:
        By name, in the order of the model: None for those that can, else a reason.

    Example:
        >>> operations_of(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
        {'0': None}
    """
    found: dict[str, str | None] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        kind = plain_class(type(module))
        is_known = kind in known_classes() or kind is nn.MultiheadAttention
        reason = stays(module) or _reason(module, is_known=is_known)
        if is_known or reason is not None:
            found[name] = reason
            inside.update(map(id, module.modules()))
    return found


def _reason(module: nn.Module, *, is_known: bool) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a compiled program, whose types are fixed"
    if not is_known:
        return None
    if isinstance(module, nn.MultiheadAttention):
        return "its forward was replaced on the instance" if "forward" in module.__dict__ else None
    parameters = list(module.parameters())
    if not parameters or ("weight" in module.__dict__ and "weight" not in module._parameters):
        return "its weight is computed anew in each forward"
    odd = [parameter.dtype for parameter in parameters if parameter.dtype not in FLOATS]
    return f"its weight is {odd[0]}" if odd else reason_against(module)


def ties_of(model: nn.Module, names: Iterable[str]) -> list[list[str]]:
    """The same names in groups: those that share a Parameter, directly or through others, are together.

    Example:
        >>> model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2), nn.Linear(2, 4, bias=False))
        >>> model[2].weight = model[0].weight
        >>> ties_of(model, ["0", "1", "2"])
        [['0', '2'], ['1']]
    """
    groups: list[tuple[list[str], set[int]]] = []
    for name in names:
        held = set(map(id, model.get_submodule(name).parameters()))
        touching = [group for group in groups if group[1] & held]
        if not touching:
            groups.append(([name], held))
            continue
        first, *others = touching
        for members, parameters in others:
            first[0].extend(members)
            first[1].update(parameters)
            groups.remove((members, parameters))
        first[0].append(name)
        first[1].update(held)
    return [members for members, _ in groups]


def regions_of(model: nn.Module, low: Collection[str], stay: Collection[str]) -> list[str]:
    """Names of the regions in which the operations ``low`` are, and none of those that ``stay``.

    What shares a Parameter with something outside of all regions stays too, as it would be cast under that.

    Args:
        model: The model.
        low: Names of operations to compute in half precision.
        stay: Names of modules that must not.

    Example:
        >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> model = nn.Sequential(block(), block())
        >>> regions_of(model, ["0.0", "0.2", "1.0", "1.2"], [])
        ['']
        >>> regions_of(model, ["0.0", "0.2", "1.0"], ["1.2"])
        ['0', '1.0']
    """
    staying = {id(inner) for name in stay for inner in model.get_submodule(name).modules()}
    wanted = {id(model.get_submodule(name)): name for name in low}
    while True:
        able = set(wanted) - staying
        found = list(_walk("", model, able, staying))
        outside = _outside(model, [module for _, module in found])
        tied = {
            id(inner)
            for _, module in found
            for inner in module.modules()
            if any(id(parameter) in outside for parameter in inner._parameters.values() if parameter is not None)
        }
        if not tied:
            return [name for name, _ in found]
        staying |= tied


def _walk(name: str, module: nn.Module, low: set[int], staying: set[int]) -> Iterator[tuple[str, nn.Module]]:
    inner = {id(each) for each in module.modules()}
    if not inner & low:
        return
    can_be_called = not isinstance(module, _CONTAINERS) and type(module).forward is not nn.Module.forward
    if not inner & staying and can_be_called and "forward" not in module.__dict__:
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _walk(f"{name}.{child_name}" if name else child_name, child, low, staying)


def _outside(model: nn.Module, regions: Iterable[nn.Module]) -> set[int]:
    """Parameters that modules outside of all regions hold."""
    inside = {id(inner) for region in regions for inner in region.modules()}
    return {
        id(parameter)
        for module in model.modules()
        if id(module) not in inside
        for parameter in module._parameters.values()
        if parameter is not None
    }


def compute_regions(model: nn.Module, names: Iterable[str], dtype: torch.dtype = torch.bfloat16) -> None:
    """Let these parts of ``model`` compute in half precision as a whole, in place.

    Floating tensors that a part is called with are cast, values stay in half precision inside, and what it returns is
    cast back, in tuples, dicts and outputs of transformers too. Parameters are cast once and stay the same objects.
    Buffers, and batch normalization, keep their dtype.

    Args:
        model: The model.
        names: Of `regions_of`.
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> compute_regions(model, [""])
        >>> model(torch.ones(1, 4)).dtype, model[0](torch.ones(1, 4)).dtype
        (torch.float32, torch.bfloat16)
    """
    modules = [model.get_submodule(name) for name in names]
    # Before any is cast, as tied weights are cast together.
    dtypes = {module: _dtype_of(module) for module in modules}
    for module, float_dtype in dtypes.items():
        for inner in list(module.modules()):
            if isinstance(inner, Bfloat16Module):
                inner.release()
        Bfloat16Module.adopt(module, plain_class(type(module)), float_dtype, dtype)
    close_fast_paths(model, (Bfloat16Module, FlowingModule))


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Of what comes out: what the first floating Parameter is, or was before it was cast."""
    for inner in module.modules():
        if isinstance(inner, Bfloat16Module):
            return inner.float_dtype
        for parameter in inner._parameters.values():
            if parameter is not None and parameter.dtype in FLOATS:
                return parameter.dtype
    return torch.float32


def members_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with tensors of their own in the parts of ``model`` that compute in half precision, by name.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
        >>> compute_regions(model, ["0"])
        >>> list(members_of(model))
        ['0.0']
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, Bfloat16Module):
            for inner_name, inner in module.named_modules():
                if any(tensor is not None for tensor in (*inner._parameters.values(), *inner._buffers.values())):
                    found[".".join(filter(None, (name, inner_name)))] = inner
    return found


def layers_of(model: nn.Module) -> dict[str, str]:
    """Modules whose own weights, matrices or more, are in half precision; by name, the name of their dtype.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> compute_regions(model, [""])
        >>> layers_of(model)
        {'0': 'bfloat16'}
    """
    found = {}
    for name, module in members_of(model).items():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dim() > 1 and parameter.dtype in (torch.bfloat16, torch.float16):
                found[name] = name_of(parameter.dtype)
    return found
