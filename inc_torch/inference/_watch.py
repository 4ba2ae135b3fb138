"""Notice that modules no longer hold what was made ready for inference."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from torch import nn

__all__ = ["Watch"]


@final
class Watch:
    """Remembers the buffers of modules.

    Args:
        modules: Whose buffers.

    Example:
        >>> module = nn.BatchNorm1d(2)
        >>> watch = Watch([module])
        >>> watch.sees_no_change
        True
        >>> _ = module.load_state_dict({**module.state_dict(), "running_mean": torch.ones(2)})
        >>> watch.sees_no_change
        False
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self._places = [
            (module._buffers, name, tensor) for module in modules for name, tensor in module._buffers.items()
        ]
        tensors = (tensor for _, _, tensor in self._places if tensor is not None)
        self._versions = [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]

    @property
    def sees_no_change(self) -> bool:
        """Whether every module still has the same buffers, and nothing was written to them that torch counts."""
        return all(holder[name] is tensor for holder, name, tensor in self._places) and all(
            tensor._version == version for tensor, version in self._versions
        )
