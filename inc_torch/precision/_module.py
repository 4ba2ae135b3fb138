"""The class of modules that compute in bfloat16.

They are made by exchanging the class of a float module, so the object, its Parameters, name and hooks stay. The class
has the name of the one that it is derived from, so ``isinstance`` and printed models stay right too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from inc_torch.core.sharding import exchange_class

__all__ = ["Bfloat16Module"]


class Bfloat16Module(nn.Module):
    """A module whose Parameters are bfloat16 and that computes in it, while callers give and get another dtype.

    Attributes:
        float_class: The class that it has in float.
        float_dtype: Of what comes out: that of the Parameters before. ``.half()``, ``.to(dtype)`` and the like change
            it, and leave the Parameters in bfloat16.
    """

    float_class: ClassVar[type[nn.Module]]

    float_dtype: torch.dtype

    @staticmethod
    def adopt(module: nn.Module, float_class: type[nn.Module], float_dtype: torch.dtype) -> None:
        """Turn ``module``, which is a ``float_class``, into one that computes in bfloat16; casts its tensors once."""
        _cast_parameters(module, torch.bfloat16)
        exchange_class(module, _bfloat16_class(float_class))
        module.__dict__["float_dtype"] = float_dtype

    def release(self) -> None:
        """Make it the float module that it was, with weights of 8 significant bits."""
        dtype = self.__dict__.pop("float_dtype")
        exchange_class(self, self.float_class)
        _cast_parameters(self, dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  those of the float class
        """Cast what is floating in the arguments to bfloat16, compute, and cast what comes out to ``float_dtype``."""
        compute: Callable[..., Any] = super().forward
        result = compute(*_cast(args, torch.bfloat16), **_cast(kwargs, torch.bfloat16))
        return _cast(result, self.float_dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move, but keep bfloat16: another dtype changes what comes out."""

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        device = next(self.parameters()).device
        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.float_dtype = fn(torch.empty(0, dtype=self.float_dtype, device=device)).dtype
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401  SupportsIndex, as in object
        own: Any = self
        return _restore, (self.float_class,), own.__getstate__()

    def extra_repr(self) -> str:
        """That of the float class, and the dtype."""
        return f"{super().extra_repr()}, computes in bfloat16".removeprefix(", ")


def _cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast what is floating in place, so that Parameters stay the same objects and tied ones stay tied."""
    module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _cast(value: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401  anything that a module takes or gives
    """Cast the floating tensors in nested tuples, lists and dicts; everything else stays as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, PackedSequence):
        return value.to(dtype)
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_cast(item, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _bfloat16_class(float_class: type[nn.Module]) -> type[nn.Module]:
    if float_class not in _CLASSES:
        namespace = {
            "__module__": float_class.__module__,
            "__qualname__": float_class.__qualname__,
            "__doc__": float_class.__doc__,
            "float_class": float_class,
        }
        _CLASSES[float_class] = type(float_class.__name__, (Bfloat16Module, float_class), namespace)
    return _CLASSES[float_class]


def _restore(float_class: type[nn.Module]) -> nn.Module:
    """Make the empty object that pickle and deepcopy fill."""
    made = _bfloat16_class(float_class)
    return made.__new__(made)
