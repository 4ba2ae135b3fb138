"""What is remembered of the inputs of a layer while the calibration data runs through its block."""

from __future__ import annotations

from typing import Protocol, final

import torch

__all__ = ["Hessian", "Moments", "SquareSums", "Statistics"]

MATRIX_RANK = 2


class Statistics(Protocol):
    """Sums over everything that a layer was given."""

    @property
    def tokens(self) -> int:
        """Rows of inputs seen so far; 0 if the layer did not run."""
        ...

    def add(self, inputs: torch.Tensor) -> None:
        """Take in what one call of the layer was given, [..., in], any float dtype."""
        ...

    def is_finite(self) -> bool:
        """Whether no infinity and no NaN was seen."""
        ...


def _rows(inputs: torch.Tensor) -> torch.Tensor:
    """All inputs as float32 [tokens, in]."""
    return inputs.detach().reshape(-1, inputs.shape[-1]).float()


def _count_sequences(inputs: torch.Tensor) -> int:
    """The batch's size; a matrix is one sequence."""
    return inputs.shape[0] if inputs.dim() > MATRIX_RANK else 1


@final
class SquareSums:
    """``a_j = (1/n) * sum over tokens of x_j^2``, with ``n`` sequences, float32 [in].

    Args:
        width: Inputs of the layer.
        device: Where its weight is.

    Example:
        >>> seen = SquareSums(2, torch.device("cpu"))
        >>> seen.add(torch.tensor([[[1.0, 0.0], [2.0, 1.0]]]))
        >>> seen.mean_squares()
        tensor([5., 1.])
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.tokens = 0
        self._sequences = 0
        self._sums = torch.zeros(width, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Take in what one call of the layer was given."""
        rows = _rows(inputs)
        self.tokens += rows.shape[0]
        self._sequences += _count_sequences(inputs)
        self._sums += rows.square().sum(0)

    def is_finite(self) -> bool:
        """Whether no infinity and no NaN was seen."""
        return bool(self._sums.isfinite().all())

    def mean_squares(self) -> torch.Tensor:
        """``a``, [in], at least 0."""
        return self._sums / max(self._sequences, 1)


@final
class Moments:
    """Also the sums and variances of each input, float32 [in].

        mu_j  = (1/n) * sum over tokens of x_j, with n sequences
        var_j = mean over batches, weighted by their tokens, of mean((x_j - mean(x_j))^2) in the batch

    Args:
        width: Inputs of the layer.
        device: Where its weight is.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._squares = SquareSums(width, device)
        self._sums = torch.zeros(width, device=device)
        self._variances = torch.zeros(width, device=device)

    @property
    def tokens(self) -> int:
        """Rows of inputs seen so far."""
        return self._squares.tokens

    def add(self, inputs: torch.Tensor) -> None:
        """Take in what one call of the layer was given."""
        rows = _rows(inputs)
        self._squares.add(inputs)
        self._sums += rows.sum(0)
        if rows.shape[0]:
            self._variances += rows.shape[0] * rows.var(0, correction=0)

    def is_finite(self) -> bool:
        """Whether no infinity and no NaN was seen."""
        return self._squares.is_finite() and bool(self._sums.isfinite().all())

    def mean_squares(self) -> torch.Tensor:
        """``a`` of `SquareSums`, [in]."""
        return self._squares.mean_squares()

    def sums(self) -> torch.Tensor:
        """``mu``, [in]."""
        return self._sums / max(self._squares._sequences, 1)

    def variances(self) -> torch.Tensor:
        """``var``, [in], at least 0."""
        return self._variances / max(self.tokens, 1)


@final
class Hessian:
    """``H = (1/n) * sum over tokens of x x^T``, with ``n`` tokens: float32 [in, in].

    Half of the second derivative of the layer's mean squared error in each row of its weight. (INC 2.6.1 has 2/n with
    n sequences; a factor changes nothing of what is pruned.)

    Args:
        width: Inputs of the layer.
        device: Where its weight is.

    Example:
        >>> seen = Hessian(2, torch.device("cpu"))
        >>> seen.add(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> seen.matrix()
        tensor([[1., 1.],
                [1., 2.]])
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.tokens = 0
        self._sums = torch.zeros(width, width, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Take in what one call of the layer was given."""
        rows = _rows(inputs)
        self.tokens += rows.shape[0]
        self._sums.addmm_(rows.t(), rows)

    def is_finite(self) -> bool:
        """Whether no infinity and no NaN was seen."""
        return bool(self._sums.isfinite().all())

    def matrix(self) -> torch.Tensor:
        """``H``, [in, in], symmetric, no negative eigenvalue but for rounding."""
        return self._sums / max(self.tokens, 1)
