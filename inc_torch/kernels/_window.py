"""Kernels that slide over images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inc_torch.kernels._arguments import MatrixArguments, PoolArguments
from inc_torch.kernels._checks import check, pixels

__all__ = ["Padding", "Pair", "Window", "fill_image"]

Pair = int | tuple[int, int]
Padding = int | tuple[Pair, Pair]
"""For height and width one number each, or two: before and after."""


def _pair(value: Pair, least: int, step: str, name: str) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else (*value,)
    check(min(both) >= least, step, name, repr(value), f"one integer of at least {least}, or two")
    return both


def _sides(padding: Padding, step: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Borders above and left, below and right."""
    height, width = (padding, padding) if isinstance(padding, int) else (*padding,)
    (above, below), (left, right) = _pair(height, 0, step, "padding"), _pair(width, 0, step, "padding")
    return (above, left), (below, right)


@dataclass(frozen=True, slots=True)
class Window:
    """Height and width of a kernel, of its steps, of the border and between its taps.

    Attributes:
        kernel: Taps.
        stride: Distance of places.
        padding: Border above and left.
        dilation: Distance of taps.
        ceil_mode: Whether a last place that only partly covers the image counts, if it begins inside.
        padding_after: Border below and right.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool = False
    padding_after: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair, step: str, *, ceil_mode: bool = False
    ) -> Window:
        """Check what the user gave."""
        before, after = _sides(padding, step)
        return cls(
            _pair(kernel, 1, step, "kernel"),
            _pair(stride, 1, step, "stride"),
            before,
            _pair(dilation, 1, step, "dilation"),
            ceil_mode,
            after,
        )

    @property
    def is_point(self) -> bool:
        """Whether each output pixel is made of one input pixel, in order."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == self.padding_after == (0, 0)

    def positions(self, axis: int, size: int) -> int:
        """Return how many places the kernel has along an axis of ``size``; none or fewer if it does not fit."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        stride, padding = self.stride[axis], self.padding[axis]
        room = size + padding + self.padding_after[axis] - reach
        if not self.ceil_mode or room < 0:
            return room // stride + 1
        count = -(-room // stride) + 1
        return count - ((count - 1) * stride >= size + padding)


def fill_image(
    arguments: MatrixArguments | PoolArguments, input: torch.Tensor, window: Window, step: str
) -> tuple[int, int, int, int]:
    """Write sizes and distances; return the shape of the output, with the channels of the input."""
    images, channels, height, width = input.shape
    arguments.pixel_stride, arguments.line_stride, arguments.image_stride = pixels(input, step, "input")
    arguments.height, arguments.width, arguments.channels = height, width, channels
    arguments.output_height, arguments.output_width = window.positions(0, height), window.positions(1, width)
    fits = arguments.output_height > 0 and arguments.output_width > 0
    check(fits, step, "input", f"of shape {tuple(input.shape)}", f"an image that the kernel {window.kernel} fits into")
    for name, pair in (
        ("kernel", window.kernel),
        ("stride", window.stride),
        ("padding", window.padding),
        ("dilation", window.dilation),
    ):
        setattr(arguments, f"{name}_height", pair[0])
        setattr(arguments, f"{name}_width", pair[1])
    return images, channels, arguments.output_height, arguments.output_width
