"""How files speak of the parts of a model that compute in half precision."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import torch
from torch import nn

from inc_torch.core.errors import ArtifactError, did_you_mean
from inc_torch.core.sharding import plain_class
from inc_torch.precision._conversion import reason_against, reasons_of_ties
from inc_torch.precision._module import Bfloat16Module
from inc_torch.precision._regions import compute_regions, operations_of

__all__ = ["describe_bfloat16", "rebuild_bfloat16"]


def describe_bfloat16(model: nn.Module) -> dict[str, str]:
    """Describe the modules that compute in bfloat16 in values that JSON knows, for `rebuild_bfloat16`.

    Returns:
        Class names in float, by module name; before that of a module that computes in float16 stands ``"float16 "``.
        Of a part that computes in it as a whole only the outermost module is named.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 2))
        >>> compute_regions(model, ["1"])
        >>> describe_bfloat16(model)
        {'1': 'GRU'}
    """
    return {
        name: f"{_PREFIXES[module.low_dtype]}{module.float_class.__name__}"
        for name, module in model.named_modules()
        if isinstance(module, Bfloat16Module)
    }


_HALF: Final = "float16 "
_PREFIXES: Final = {torch.bfloat16: "", torch.float16: _HALF}


def rebuild_bfloat16(model: nn.Module, description: Mapping[str, str]) -> None:
    """Let the modules that ``description`` names compute in bfloat16, ready for ``load_state_dict``.

    Args:
        model: The model that was saved, on any device, also ``meta``; its weights do not matter.
        description: What `describe_bfloat16` gave.

    Raises:
        ArtifactError: The description is damaged, or of another model. The model is then unchanged.
    """
    if description == describe_bfloat16(model):
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, kind in description.items():
        where = f"The description of bfloat16 modules names {name!r}"
        if name not in modules:
            message = f"{where}, which {type(model).__name__} does not have.{did_you_mean(name, modules)}"
            raise ArtifactError(message)
        present = plain_class(type(modules[name])).__name__
        if kind not in (present, _HALF + present):
            message = (
                f"{where} as {kind!r}, but {type(model).__name__} has a {present} there. Build the model with the "
                "configuration that it was saved with."
            )
            raise ArtifactError(message)
    for name, reason in _reasons(modules, description.keys()).items():
        message = f"The description of bfloat16 modules names {name!r}, which cannot compute in it: {reason}."
        raise ArtifactError(message)
    for dtype, prefix in _PREFIXES.items():
        names = [name for name, kind in description.items() if kind.startswith(_HALF) == bool(prefix)]
        compute_regions(model, names, dtype)


def _reasons(modules: Mapping[str, nn.Module], names: Collection[str]) -> dict[str, str]:
    found = {}
    for name in names:
        can = [reason for reason in operations_of(modules[name]).values() if reason is None]
        if not can:
            kind = plain_class(type(modules[name]))
            found[name] = reason_against(modules[name]) or f"{kind.__name__} holds no operation that can"
    return found | reasons_of_ties(modules, names)
