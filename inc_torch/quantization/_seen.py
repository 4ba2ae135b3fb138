"""What is remembered of the inputs of a layer, for weights to be rounded by it."""

from __future__ import annotations

from typing import final

import torch

from inc_torch.pruners.calibrated import Hessian

__all__ = ["SeenInputs"]


@final
class SeenInputs:
    """The products of inputs, and their magnitudes.

    Args:
        width: Inputs of the layer.
        device: Where its weight is.

    Example:
        >>> seen = SeenInputs(2, torch.device("cpu"))
        >>> seen.add(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]))
        >>> seen.magnitudes()
        tensor([1., 1.])
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._hessian = Hessian(width, device)
        self._sums = torch.zeros(width, device=device)

    @property
    def tokens(self) -> int:
        """Rows of inputs seen so far."""
        return self._hessian.tokens

    def add(self, inputs: torch.Tensor) -> None:
        """Take in what one call of the layer was given."""
        self._hessian.add(inputs)
        self._sums += inputs.detach().reshape(-1, inputs.shape[-1]).float().abs().sum(0)

    def is_finite(self) -> bool:
        """Whether no infinity and no NaN was seen."""
        return self._hessian.is_finite()

    def moments(self) -> torch.Tensor:
        """The mean of x x^T, [in, in]."""
        return self._hessian.matrix()

    def magnitudes(self) -> torch.Tensor:
        """The mean magnitude of each, [in]."""
        return self._sums / max(self.tokens, 1)
