"""Saving from several processes: a sharded model is put together, one process writes, the others wait."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn

from inc_torch.core.errors import ArtifactError
from inc_torch.core.names import unwrapped
from inc_torch.core.ranks import Ranks
from inc_torch.core.sharding import plain_class, whole

__all__ = ["assembled", "write_once"]

ModelT = TypeVar("ModelT", bound=nn.Module)

LONGEST_WRITE = timedelta(hours=2)
_WRITES: Counter[str] = Counter()
"""How often this process took part in writing a directory; the same on all ranks that save together."""


def assembled(model: ModelT, *, without_wrappers: bool = False) -> ModelT:
    """Return ``model`` as a file is to hold it: itself, or a copy of a sharded one, which every rank must ask for.

    The copy is there to be saved, not to be run. Modules have the classes that they had before they were sharded,
    tensors that were sharded are whole and on the CPU, with values on the first rank only, and everything else is that
    of ``model``.

    Args:
        model: Any module.
        without_wrappers: Also copy a model of which parts are wrapped (`torch.compile`, activation checkpointing), to
            leave the wrappers out.
    """
    model.state_dict()  # lets FSDP put its shards back where a forward left gathered weights
    sharded = [tensor for tensor in [*model.parameters(), *model.buffers()] if hasattr(tensor, "full_tensor")]
    wrapped = without_wrappers and any(unwrapped(module) is not module for module in model.modules())
    if not sharded and not wrapped:
        return model
    device = "cpu" if Ranks().index == 0 else "meta"
    tensors: dict[int, torch.Tensor] = {}
    for tensor in sharded:
        full = whole(tensor.detach()).to(device)
        tensors[id(tensor)] = nn.Parameter(full, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else full
    copies: dict[nn.Module, Any] = {}
    _copy(model, tensors, copies, without_wrappers=without_wrappers)
    copied: ModelT = copies[model]
    return copied


def _copy(
    module: nn.Module, tensors: dict[int, torch.Tensor], copies: dict[nn.Module, Any], *, without_wrappers: bool
) -> None:
    """Add copies of ``module`` and of all below it to ``copies``, by original."""
    own = module.__dict__
    copies[module] = copy = object.__new__(plain_class(type(module)))
    copy.__dict__.update(own)
    for table in ("_parameters", "_buffers"):
        copy.__dict__[table] = {name: tensors.get(id(tensor), tensor) for name, tensor in own[table].items()}
    copy.__dict__["_modules"] = dict(own["_modules"])
    for name, child in module._modules.items():
        if child is not None:
            inner = unwrapped(child) if without_wrappers else child
            if inner not in copies:
                _copy(inner, tensors, copies, without_wrappers=without_wrappers)
            copy.__dict__["_modules"][name] = copies[inner]


def write_once(directory: str | os.PathLike[str], write: Callable[[], None]) -> None:
    """Call ``write`` on the first rank; the other ranks return when it is done.

    The first rank waits for nobody, so it does no harm to call this on that rank alone.

    Args:
        directory: What is written, to tell one save from another.
        write: Writes it.

    Raises:
        ArtifactError: On the other ranks, if the first one failed.
    """
    ranks = Ranks()
    if ranks.count == 1:
        write()
        return
    # Not a barrier, at which the first rank would hang if the others did not come.
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    path = os.path.realpath(directory)
    _WRITES[path] += 1
    key = f"inc_torch/write/{_WRITES[path]}/{path}"
    if ranks.index > 0:
        store.wait([key], LONGEST_WRITE)
        if store.get(key) != b"done":
            message = (
                f"{os.fspath(directory)!r} was not saved: the process of rank 0, which writes it, failed. "
                "Its own error says why."
            )
            raise ArtifactError(message)
        return
    outcome = "failed"
    try:
        write()
        outcome = "done"
    finally:
        store.set(key, outcome)
