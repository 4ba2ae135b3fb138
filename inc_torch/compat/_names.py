"""Which module of this package stands for which of Intel Neural Compressor's.

Most have the same name. Modules that INC divided further, or had under several names, are one module here.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from typing import Final

__all__ = ["counterpart", "hint_for", "known_names"]

OURS: Final = "inc_torch"
_SHARED: Final = (
    "benchmark",
    "compression",
    "conf",
    "config",
    "data",
    "experimental",
    "metric",
    "mix_precision",
    "model",
    "objective",
    "quantization",
    "training",
    "utils",
)
"""Names at the top that INC has too; what is public below them stands under INC's name as it is."""

_ELSEWHERE: Final = {
    "data.dataloaders": "data",
    "data.dataloaders.base_dataloader": "data",
    "data.dataloaders.dataloader": "data",
    "data.dataloaders.pytorch_dataloader": "data",
    "data.datasets.dataset": "data",
    "data.filters.filter": "data",
    "data.transforms.transform": "data",
    "experimental.data": "data",
    "experimental.data.dataloaders": "data",
    "experimental.data.dataloaders.pytorch_dataloader": "data",
    "experimental.data.datasets": "data",
    "experimental.data.transforms": "data",
    "experimental.metric": "metric",
    "experimental.pruning_v2": "experimental",
    "experimental.pytorch_pruner": "experimental",
    "experimental.pytorch_pruner.pruning": "experimental",
    "metric.metric": "metric",
    "model.model": "model",
    "version": "",
}
"""INC's name, and what it is called here."""

_HINTS: Final = {
    "adaptor": "Adaptors are chosen by the config (backend=), and nothing of them has to be imported.",
    "strategy": "A tuning strategy of your own is registered with inc_torch.tuning.STRATEGIES.",
    "torch": "That is the API of INC 3.X; inc_torch has that of 1.X and 2.X.",
    "common": "That is the API of INC 3.X; inc_torch has that of 1.X and 2.X.",
    "tensorflow": "inc_torch compresses models of PyTorch only.",
    "onnxrt": "inc_torch compresses models of PyTorch only.",
}
"""What to do instead, by the first part of the name."""


def counterpart(name: str) -> str | None:
    """Return the module of this package that stands for ``neural_compressor.<name>``; None if there is none.

    Example:
        >>> counterpart("metric.metric"), counterpart(""), counterpart("adaptor")
        ('inc_torch.metric', 'inc_torch', None)
    """
    if name in _ELSEWHERE:
        target, parent = _joined(_ELSEWHERE[name]), name.rpartition(".")[0]
        return target if counterpart(parent) is not None and _exists(target) else None
    parts = name.split(".") if name else []
    if parts and (parts[0] not in _SHARED or any(part.startswith("_") for part in parts)):
        return None
    target = _joined(name)
    return target if _exists(target) else None


def known_names() -> list[str]:
    """INC's module names that have a counterpart, without ``neural_compressor`` before them.

    Example:
        >>> {"config", "utils.load_huggingface", "data"} <= set(known_names())
        True
    """
    found = {name for name in (*_SHARED, *_ELSEWHERE) if counterpart(name) is not None}
    for name in _SHARED:
        spec = importlib.util.find_spec(_joined(name)) if name in found else None
        places = spec.submodule_search_locations if spec is not None else None
        found |= {f"{name}.{each.name}" for each in pkgutil.iter_modules(places or ()) if each.name[0] != "_"}
    return sorted(found)


def hint_for(name: str) -> str:
    """What to do instead of importing ``name``, or an empty string."""
    return _HINTS.get(name.partition(".")[0], "")


def _joined(name: str) -> str:
    return f"{OURS}.{name}" if name else OURS


def _exists(target: str) -> bool:
    """Whether there is such a module; parents are imported to see that, and one that is no package has no children."""
    try:
        return importlib.util.find_spec(target) is not None
    except ModuleNotFoundError as error:
        if error.name is None or not target.startswith(error.name):
            raise  # something that a parent needs
        return False
