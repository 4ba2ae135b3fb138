"""Modules inside a part of a model that computes in half precision: values stay in it from one to the next.

Each takes floating tensors of any dtype and computes in that of its weight, so that a table or a constant of float32
that a model adds in between is no error, only slower. What comes out is not cast back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import nn

from inc_torch.precision._casting import cast, keeping_dtypes
from inc_torch.precision._folding import is_done, mark, usable
from inc_torch.precision._packed import SLOT, linear, pack_of_convolution, with_packed_weight

__all__ = ["FlowingModule", "flowing_class"]

_IMAGE_RANK = 4


class FlowingModule(nn.Module):
    """A module that casts its floating inputs to the dtype of its Parameters.

    Attributes:
        float_class: The class that it has in float.
        low_dtype: What it computes in.
    """

    float_class: ClassVar[type[nn.Module]]
    low_dtype: torch.dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  those of the float class
        """Cast what is floating in the arguments, and compute."""
        compute: Callable[..., Any] = super().forward
        return compute(*cast(args, self.low_dtype), **cast(kwargs, self.low_dtype))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move, but keep the dtypes: ``.float()`` of the model is about what goes in and out of it."""
        self.__dict__.pop(SLOT, None)
        super()._apply(keeping_dtypes(fn), recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401  SupportsIndex, as in object
        own: Any = self
        return _restore, (self.float_class,), own.__getstate__()


class _FlowingLinear(FlowingModule):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        own: Any = self
        low = self.low_dtype
        return linear(own, input if input.dtype is low else input.to(low))


class _FlowingConv2d(FlowingModule):
    """Images are kept with their channels last, in which convolutions of half precision are fastest."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        own: Any = self
        low = self.low_dtype
        value = input if input.dtype is low else input.to(low)
        if value.dim() == _IMAGE_RANK:
            value = value.contiguous(memory_format=torch.channels_last)
        if (
            own.padding_mode != "zeros"
            or isinstance(own.padding, str)
            or value.dim() != _IMAGE_RANK
            or not with_packed_weight(self, value)
        ):
            result: torch.Tensor = own._conv_forward(value, own.weight, own.bias)
            return result
        followers = usable(self)
        packed = pack_of_convolution(own, value.shape, followers)
        geometry = (own.padding, own.stride, own.dilation, own.groups)
        after = "none" if followers is None or followers.relu is None else "relu"
        made: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            value, packed.weight, packed.bias, *geometry, after, [], ""
        )
        return made if followers is None else mark(made, followers)


class _Following(FlowingModule):
    """Hands on what a convolution has done already; see `inc_torch.precision._folding`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        if is_done(input, self):
            return input
        compute: Callable[..., torch.Tensor] = super(FlowingModule, self).forward
        return compute(input)


_SPECIAL: dict[type[nn.Module], type[FlowingModule]] = {
    nn.Linear: _FlowingLinear,
    nn.Conv2d: _FlowingConv2d,
    nn.BatchNorm2d: _Following,
    nn.ReLU: _Following,
}
_CLASSES: dict[type[nn.Module], type[FlowingModule]] = {}


def flowing_class(float_class: type[nn.Module]) -> type[FlowingModule]:
    """The class that ``float_class`` has inside a part of a model that computes in half precision."""
    if float_class not in _CLASSES:
        namespace = {
            "__module__": float_class.__module__,
            "__qualname__": float_class.__qualname__,
            "__doc__": float_class.__doc__,
            "float_class": float_class,
        }
        bases = (_SPECIAL.get(float_class, FlowingModule), float_class)
        _CLASSES[float_class] = type(float_class.__name__, bases, namespace)
    return _CLASSES[float_class]


def _restore(float_class: type[nn.Module]) -> nn.Module:
    """Make the empty object that pickle and deepcopy fill."""
    made = flowing_class(float_class)
    return made.__new__(made)
