"""Size of a model as it is saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, final

import torch
from torch import nn

from inc_torch.core.batches import Inputs
from inc_torch.tuning._objectives import OBJECTIVES, Objective

__all__ = ["ModelSize"]


@final
@OBJECTIVES.register("modelsize", summary="megabytes of the tensors that are saved")
class ModelSize(Objective):
    """Megabytes (10^6 bytes) of all tensors in the state dict: codes as they are packed, tied tensors once.

    Source: INC 2.6.1: ``modelsize``, which gives the same number for any model.

    Example:
        >>> ModelSize().measure(nn.Linear(999, 1000), [])  # 4 * (999 * 1000 + 1000) bytes
        4.0
    """

    representation: ClassVar[str] = "Model size (MB)"

    def measure(self, model: nn.Module, batches: Sequence[Inputs]) -> float:  # noqa: ARG002  for others
        """Return the megabytes."""
        views: defaultdict[int, dict[object, int]] = defaultdict(dict)
        capacity: dict[int, int] = {}
        state = model.state_dict(keep_vars=True)
        for tensor in _tensors(state):
            storage = tensor.untyped_storage()
            key = storage.data_ptr() or id(tensor)  # on the meta device there is no address
            view = tensor.storage_offset(), tensor.shape, tensor.stride()
            views[key][view] = tensor.numel() * tensor.element_size()
            capacity[key] = max(capacity.get(key, 0), storage.nbytes())
        return sum(min(sum(sizes.values()), capacity[key]) for key, sizes in views.items()) / 1e6


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """All tensors; those that torch's own quantized layers save stand in tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
