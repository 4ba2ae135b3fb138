"""The class of modules that compute in half precision.

They are made by exchanging the class of a float module, so the object, its Parameters, name and hooks stay. The class
has the name of the one that it is derived from, so ``isinstance`` and printed models stay right too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import torch
from torch import nn

from inc_torch.core.sharding import exchange_class, plain_class
from inc_torch.precision._casting import cast, cast_parameters_, keeping_dtypes
from inc_torch.precision._flow import FlowingModule, flowing_class
from inc_torch.precision._folding import FOLLOWERS, Followers, enter, leave
from inc_torch.precision._packed import SLOT

__all__ = ["Bfloat16Module"]

LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.RNN,
    nn.LSTM,
    nn.GRU,
    nn.RNNCell,
    nn.LSTMCell,
    nn.GRUCell,
)
"""Classes that can compute in half precision alone."""

FLOWING = frozenset(
    {*LAYERS, nn.Bilinear, nn.EmbeddingBag, nn.MultiheadAttention, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm}
)
"""Classes that cast what they get where values flow in half precision."""

_WITH_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""They keep float32 tensors, take half precision all the same, and give what they got."""


class Bfloat16Module(nn.Module):
    """A module that computes in half precision, while callers give and get another dtype.

    It may be a single layer, or hold others: these then hand values on in half precision, see `FlowingModule`, and
    only here they are cast.

    Attributes:
        float_class: The class that it has in float.
        float_dtype: Of what comes out: that of the Parameters before. ``.half()``, ``.to(dtype)`` and the like change
            it, and leave the Parameters in half precision.
        low_dtype: What it computes in: bfloat16, or float16.
    """

    float_class: ClassVar[type[nn.Module]]

    float_dtype: torch.dtype
    low_dtype: torch.dtype

    @staticmethod
    def adopt(
        module: nn.Module,
        float_class: type[nn.Module],
        float_dtype: torch.dtype,
        low_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Turn ``module``, which is a ``float_class``, into one that computes in half precision; casts tensors once."""
        for inner in module.modules():
            kind = plain_class(type(inner))
            if not isinstance(inner, _WITH_STATISTICS):
                cast_parameters_(inner, low_dtype)
            if inner is not module and kind in _flowing_kinds():
                exchange_class(inner, flowing_class(kind))
                inner.__dict__["low_dtype"] = low_dtype
        exchange_class(module, _bfloat16_class(float_class))
        module.__dict__.update(float_dtype=float_dtype, low_dtype=low_dtype)

    def release(self) -> None:
        """Make it the float module that it was, with weights of fewer significant bits."""
        dtype = self.__dict__.pop("float_dtype")
        for inner in self.modules():
            if isinstance(inner, (Bfloat16Module, FlowingModule)):
                exchange_class(inner, inner.float_class)
            for leftover in ("low_dtype", "float_dtype", SLOT, FOLLOWERS):
                inner.__dict__.pop(leftover, None)
            if not isinstance(inner, _WITH_STATISTICS):
                cast_parameters_(inner, dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  those of the float class
        """Cast what is floating in the arguments, compute, and cast what comes out to ``float_dtype``."""
        compute: Callable[..., Any] = super().forward
        low, saturate = self.low_dtype, not isinstance(self, FlowingModule)  # a layer is given no mask
        args, kwargs = cast(args, low, saturate=saturate), cast(kwargs, low, saturate=saturate)
        if FOLLOWERS not in self.__dict__:
            return cast(compute(*args, **kwargs), self.float_dtype)
        enter()
        try:
            return cast(compute(*args, **kwargs), self.float_dtype)
        finally:
            leave()

    def link(self, chains: Iterable[tuple[nn.Module, nn.Module, nn.Module | None]]) -> None:
        """Let convolutions inside do what follows them, see `inc_torch.precision._folding`.

        Args:
            chains: An ``nn.Conv2d``, the ``nn.BatchNorm2d`` that alone reads its result, and the ``nn.ReLU`` that
                alone reads what that returns, or None; wherever the forward of this module runs.
        """
        for convolution, norm, relu in chains:
            for follower in filter(None, (norm, relu)):
                if not isinstance(follower, FlowingModule):
                    exchange_class(follower, flowing_class(plain_class(type(follower))))
                    follower.__dict__["low_dtype"] = self.low_dtype
            convolution.__dict__[FOLLOWERS] = Followers(norm, relu)
            self.__dict__[FOLLOWERS] = True

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move, but keep half precision: another dtype changes what comes out."""
        device = next(self.parameters()).device
        self.__dict__.pop(SLOT, None)
        super()._apply(keeping_dtypes(fn), recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.float_dtype = fn(torch.empty(0, dtype=self.float_dtype, device=device)).dtype
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401  SupportsIndex, as in object
        own: Any = self
        return _restore, (self.float_class,), own.__getstate__()

    def extra_repr(self) -> str:
        """That of the float class, and the dtype."""
        return f"{super().extra_repr()}, computes in {name_of(self.low_dtype)}".removeprefix(", ")


def name_of(dtype: torch.dtype) -> str:
    """``"bfloat16"`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _flowing_kinds() -> frozenset[type[nn.Module]]:
    transposed = transposed_linear()
    return FLOWING if transposed is None else FLOWING | {transposed}


def transposed_linear() -> type[nn.Module] | None:
    """The ``Conv1D`` of transformers, once that is imported."""
    import sys

    kind: type[nn.Module] | None = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return kind


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _bfloat16_class(float_class: type[nn.Module]) -> type[nn.Module]:
    if float_class not in _CLASSES:
        inner = flowing_class(float_class) if float_class in _flowing_kinds() else float_class

        # transformers reads from the signature what a model can be given.
        @functools.wraps(float_class.forward)
        def forward(self: Bfloat16Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  those of the float class
            return Bfloat16Module.forward(self, *args, **kwargs)

        namespace = {
            "__module__": float_class.__module__,
            "__qualname__": float_class.__qualname__,
            "__doc__": float_class.__doc__,
            "float_class": float_class,
            "forward": forward,
        }
        _CLASSES[float_class] = type(float_class.__name__, (Bfloat16Module, inner), namespace)
    return _CLASSES[float_class]


def _restore(float_class: type[nn.Module]) -> nn.Module:
    """Make the empty object that pickle and deepcopy fill."""
    made = _bfloat16_class(float_class)
    return made.__new__(made)
