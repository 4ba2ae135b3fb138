"""Notice that modules no longer hold what was made ready for inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import nn

__all__ = ["Watch"]


@final
class Watch:
    """Remembers the buffers of modules.

    Args:
        modules: Whose buffers.
        everything: Parameters and children too.

    Example:
        >>> module = nn.BatchNorm1d(2)
        >>> watch = Watch([module])
        >>> watch.sees_no_change
        True
        >>> _ = module.load_state_dict({**module.state_dict(), "running_mean": torch.ones(2)})
        >>> watch.sees_no_change
        False
    """

    def __init__(self, modules: Iterable[nn.Module] = (), *, everything: bool = False) -> None:
        held = [
            (holder, name, value)
            for module in modules
            for holder in _holders(module, everything=everything)
            for name, value in holder.items()
        ]
        self._places = held
        tensors = [value for _, _, value in held if isinstance(value, torch.Tensor)]
        self._versions = [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]
        # ``parameter.data = …``, as ``.to(dtype)`` does, counts as no write.
        self._addresses = [(tensor, tensor.data_ptr()) for tensor in tensors if isinstance(tensor, nn.Parameter)]

    @property
    def sees_no_change(self) -> bool:
        """Whether every module still holds the same, and nothing was written to it that torch counts."""
        return (
            all(holder.get(name) is value for holder, name, value in self._places)
            and all(tensor._version == version for tensor, version in self._versions)
            and all(tensor.data_ptr() == address for tensor, address in self._addresses)
        )


def _holders(module: nn.Module, *, everything: bool) -> Iterator[Mapping[str, Any]]:
    yield module._buffers
    if everything:
        yield module._parameters
        yield module._modules
