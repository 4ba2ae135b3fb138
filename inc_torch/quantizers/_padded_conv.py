"""Convolutions that put more zeros on one side than on the other.

Models bring subclasses of torch's convolutions that pad by themselves, as TensorFlow's "same" padding or causal
convolutions need it. One whose forward is nothing but padding with zeros and a convolution becomes one of these, which
have the names of torch's own classes, so that rules by class name mean them too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["PADDED_CONVS", "Conv1d", "Conv2d", "Conv3d", "adopt_padding"]


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d` with the padding that ``_reversed_padding_repeated_twice`` says."""

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:  # noqa: A002
        padded = F.pad(input, list(self._reversed_padding_repeated_twice))
        return F.conv1d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with the padding that ``_reversed_padding_repeated_twice`` says.

    Example:
        >>> layer = nn.Conv2d(1, 1, 2)
        >>> adopt_padding(layer, (0, 1, 0, 1))
        >>> layer(torch.ones(1, 1, 4, 4)).shape
        torch.Size([1, 1, 4, 4])
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:  # noqa: A002
        padded = F.pad(input, list(self._reversed_padding_repeated_twice))
        return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d` with the padding that ``_reversed_padding_repeated_twice`` says."""

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:  # noqa: A002
        padded = F.pad(input, list(self._reversed_padding_repeated_twice))
        return F.conv3d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)


PADDED_CONVS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
}
"""By the class of torch, the one that pads as it likes."""


def adopt_padding(module: nn.Module, around: Sequence[int]) -> None:
    """Turn a convolution, or an instance of a subclass, into one that puts zeros ``around`` its input, in place.

    Args:
        module: A convolution of torch, or of a class derived from one.
        around: As in `torch.nn.functional.pad`: before and after, the last axis first.
    """
    base = next(kind for kind in PADDED_CONVS if isinstance(module, kind))
    module.__class__ = PADDED_CONVS[base]
    module.__dict__.update(
        _reversed_padding_repeated_twice=list(around),
        padding_mode="zeros",
        stride=tuple(module.__dict__["stride"]),
        dilation=tuple(module.__dict__["dilation"]),
    )
