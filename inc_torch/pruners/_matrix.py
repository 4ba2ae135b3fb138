"""How a weight of any rank is seen as a matrix of outputs by inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import nn

from inc_torch.core.sharding import plain_class

__all__ = ["DenseBlocks", "MatrixView", "is_linear", "matrix_of"]

_MATRIX_RANK = 2


@final
@dataclass(frozen=True, slots=True)
class MatrixView:
    """A weight as a matrix [out, kernel positions * in], inputs fastest.

    Linear [out, in] and Conv [out, in, *kernel] give the axes (out, *kernel, in). Transposed convolutions store
    [in, out, *kernel] and transformers' ``Conv1D`` stores [in, out]: they are turned round (INC 2.6.1 takes
    their first axis for outputs).

    Attributes:
        axes: The weight's axes in the order (out, *kernel, in).
        sizes: Their sizes, in that order.

    Example:
        >>> MatrixView.of(nn.Conv2d(3, 8, 5), torch.Size([8, 3, 5, 5]))
        MatrixView(axes=(0, 2, 3, 1), sizes=(8, 5, 5, 3))
        >>> MatrixView.of(nn.ConvTranspose2d(3, 8, 5), torch.Size([3, 8, 5, 5]))
        MatrixView(axes=(1, 2, 3, 0), sizes=(8, 5, 5, 3))
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, module: nn.Module, shape: torch.Size) -> Self:
        """See the weight of ``module``, of rank 2 or more, as a matrix."""
        is_turned = (
            isinstance(module, nn.modules.conv._ConvTransposeNd) or plain_class(type(module)).__name__ == "Conv1D"
        )
        kernel = range(2, len(shape))
        axes = (1, *kernel, 0) if is_turned else (0, *kernel, 1)
        return cls(axes, tuple(shape[axis] for axis in axes))

    @property
    def height(self) -> int:
        """Outputs."""
        return self.sizes[0]

    @property
    def width(self) -> int:
        """Kernel positions times inputs."""
        return math.prod(self.sizes[1:])

    @property
    def channels(self) -> int:
        """Inputs."""
        return self.sizes[-1]

    @property
    def has_outputs_first(self) -> bool:
        """Whether the weight's first axis is that of outputs; else it is that of inputs."""
        return self.axes[0] == 0

    def resized(self, length: int) -> MatrixView:
        """The view of a weight that has ``length`` entries in its first axis."""
        return MatrixView(
            self.axes, tuple(size if axis else length for axis, size in zip(self.axes, self.sizes, strict=True))
        )

    def ordered(self, weight: torch.Tensor) -> torch.Tensor:
        """A view of ``weight`` with its axes in the order (out, *kernel, in)."""
        return weight.permute(self.axes)

    def restored(self, matrix: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor of matrix elements, seen in the weight's own shape."""
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return matrix.view(self.sizes).permute(inverse)


@final
@dataclass(frozen=True, slots=True)
class DenseBlocks:
    """A tensor without gaps, seen as a matrix whose units are blocks of rows by one column.

    Attributes:
        values: [units * rows, columns], in any shape.
        columns: Columns of the matrix.
        rows: Rows of a block.
    """

    values: torch.Tensor
    columns: int
    rows: int


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an `nn.Linear` or transformers' ``Conv1D``, with a weight of its own."""
    is_known = isinstance(module, nn.Linear) or plain_class(type(module)).__name__ == "Conv1D"
    weight = module._parameters.get("weight")
    return is_known and weight is not None and weight.dim() == _MATRIX_RANK


def matrix_of(module: nn.Module) -> torch.Tensor:
    """The weight of a linear layer as [out, in]: a view, which is written through. ``Conv1D`` stores [in, out].

    Example:
        >>> matrix_of(nn.Linear(3, 2)).shape
        torch.Size([2, 3])
    """
    weight = module.get_parameter("weight").detach()
    return MatrixView.of(module, weight.shape).ordered(weight)
