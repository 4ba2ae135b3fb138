"""Notice that modules no longer hold what was made ready for inference."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
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
        self._seen = [
            (module._buffers, name, tensor, _version(tensor))
            for module in modules
            for name, tensor in module._buffers.items()
        ]

    @property
    def sees_no_change(self) -> bool:
        """Whether every module still has the same buffers, and nothing was written to them that torch counts."""
        return all(
            holder[name] is tensor and (tensor is None or version < 0 or tensor._version == version)
            for holder, name, tensor, version in self._seen
        )


def _version(tensor: torch.Tensor | None) -> int:
    """How often torch saw a tensor being written to; -1 if it does not count that."""
    return -1 if tensor is None or tensor.is_inference() else tensor._version
