"""Checks of operands, done when a step is built: what passes them cannot lead the compiled code astray."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inc_torch.core.errors import IncTorchError
from inc_torch.kernels._types import Grid

__all__ = ["OperandError", "check", "dense", "dense_last", "grid_of", "operand", "pixels", "rows_of", "vector"]

TYPES = {torch.float32: 1, torch.bfloat16: 2, torch.uint8: 3}
"""Numbers of the types that operands have in the kernels."""


class OperandError(IncTorchError, ValueError):
    """An operand of a kernel has the wrong dtype, shape, device or layout."""


def check(holds: bool, step: str, name: str, got: object, want: str) -> None:
    """Refuse an operand unless ``holds``.

    Raises:
        OperandError: With the step, the operand, what it is and what it should be.
    """
    if not holds:
        message = f"inc_torch.kernels.{step}: {name} is {got}, expected {want}."
        raise OperandError(message)


def operand(tensor: object, step: str, name: str, dtypes: Sequence[torch.dtype]) -> int:
    """Check kind, device and dtype; return the number of the dtype."""
    check(isinstance(tensor, torch.Tensor), step, name, f"a {type(tensor).__name__}", "a tensor")
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(name)
    check(tensor.device.type == "cpu", step, name, f"on {tensor.device}", "on the CPU")
    check(tensor.layout == torch.strided, step, name, tensor.layout, "a strided tensor")
    want = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    check(tensor.dtype in dtypes, step, name, str(tensor.dtype).removeprefix("torch."), want)
    check(tensor.numel() > 0, step, name, f"empty, of shape {tuple(tensor.shape)}", "at least one element")
    return TYPES.get(tensor.dtype, 0)


def dense(tensor: torch.Tensor, step: str, name: str, dtypes: Sequence[torch.dtype], size: int | None = None) -> None:
    """Check an operand that lies without gaps, in any shape, perhaps of some size; quickly if nothing is wrong."""
    is_plain = tensor.dtype in dtypes and tensor.device.type == "cpu" and tensor.is_contiguous()
    if is_plain and tensor.numel() == (size or tensor.numel() or -1):
        return
    operand(tensor, step, name, dtypes)
    check(tensor.is_contiguous(), step, name, f"of strides {tensor.stride()}", "a contiguous tensor")
    check(size is None or tensor.numel() == size, step, name, f"of {tensor.numel()} numbers", str(size))


def shaped(tensor: torch.Tensor, step: str, name: str, shape: Sequence[int]) -> None:
    """Check the shape."""
    check(tuple(tensor.shape) == tuple(shape), step, name, f"of shape {tuple(tensor.shape)}", str(tuple(shape)))


def dense_last(tensor: torch.Tensor, step: str, name: str) -> None:
    """Check that the last dimension lies dense."""
    dense = tensor.shape[-1] == 1 or tensor.stride(-1) == 1
    check(dense, step, name, f"of strides {tensor.stride()}", "a dense last dimension")


def rows_of(tensor: torch.Tensor, step: str, name: str) -> tuple[int, int, int]:
    """Return rows, columns and the distance of rows of a matrix whose rows lie dense."""
    check(tensor.dim() == 2, step, name, f"of shape {tuple(tensor.shape)}", "[rows, columns]")  # noqa: PLR2004
    dense_last(tensor, step, name)
    rows, columns = tensor.shape
    stride = tensor.stride(0) if rows > 1 else max(tensor.stride(0), columns)
    check(stride >= columns, step, name, f"of strides {tensor.stride()}", "rows that do not overlap")
    return rows, columns, stride


def pixels(tensor: torch.Tensor, step: str, name: str) -> tuple[int, int, int]:
    """Return the distances of pixels, lines and images of ``[n, c, h, w]`` in channels-last order.

    A slice of the channels of a bigger tensor is right too. Distances along dimensions of size 1 are made up, so that
    one image of one line has the distances of a whole one.
    """
    check(tensor.dim() == 4, step, name, f"of shape {tuple(tensor.shape)}", "[n, c, h, w]")  # noqa: PLR2004
    images, channels, height, width = tensor.shape
    check(channels == 1 or tensor.stride(1) == 1, step, name, f"of strides {tensor.stride()}", "channels-last memory")
    if width > 1:
        pixel = tensor.stride(3)
    elif height > 1:
        pixel = tensor.stride(2)
    else:
        pixel = tensor.stride(0) if images > 1 else channels
    line = tensor.stride(2) if height > 1 else pixel * width
    image = tensor.stride(0) if images > 1 else line * height
    ordered = pixel >= channels and line >= pixel * width and image >= line * height
    check(ordered, step, name, f"of strides {tensor.stride()}", "channels-last memory")
    return pixel, line, image


def even_pixels(tensor: torch.Tensor, step: str, name: str) -> int:
    """Return the distance of pixels, which must be the same from line to line and image to image."""
    pixel, line, image = pixels(tensor, step, name)
    even = line == pixel * tensor.shape[3] and image == line * tensor.shape[2]
    check(even, step, name, f"of strides {tensor.stride()}", "channels-last memory with pixels at even distances")
    return pixel


def vector(tensor: torch.Tensor, step: str, name: str, length: int) -> torch.Tensor:
    """Check a dense float32 vector of some length."""
    operand(tensor, step, name, (torch.float32,))
    shaped(tensor, step, name, (length,))
    return tensor.detach().contiguous()


def grid_of(grid: Grid | None, kind: torch.dtype, step: str, name: str) -> Grid:
    """Check that codes, and only codes, have a grid; return it, or one that is not read."""
    if kind == torch.uint8:
        check(isinstance(grid, Grid), step, name, repr(grid), "a Grid, as the tensor is uint8")
    else:
        check(grid is None, step, name, repr(grid), f"None, as the tensor is {str(kind).removeprefix('torch.')}")
    return grid if grid is not None else Grid(1.0, 0)
