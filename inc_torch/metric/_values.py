"""Predictions and labels of any kind as tensors."""

from __future__ import annotations

import numpy as np
import torch

from inc_torch.core.batches import described
from inc_torch.core.errors import ConfigError, ModelError

__all__ = ["as_tensor", "no_sample", "paired"]

NUMERIC_KINDS = "biuf"


def as_tensor(values: object) -> torch.Tensor:
    """Return tensors, arrays, numbers and lists of them as one tensor on the CPU.

    Raises:
        ModelError: They are no numbers.

    Example:
        >>> as_tensor([torch.tensor([1, 2]), [3, 4]])
        tensor([[1, 2],
                [3, 4]])
    """
    if isinstance(values, torch.Tensor):
        return values.detach().cpu()
    if isinstance(values, list | tuple) and any(isinstance(item, torch.Tensor) for item in values):
        return torch.stack([as_tensor(item) for item in values])
    array = np.array(values, order="C")
    if array.dtype.kind not in NUMERIC_KINDS:
        message = (
            f"A metric was given {described(values)}: expected numbers, as a tensor, an array or a list. Turn model "
            "output and labels into numbers before."
        )
        raise ModelError(message)
    return torch.from_numpy(array)


def paired(preds: object, labels: object, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both as flat tensors of one length; axes of length 1 may be missing in one of them.

    Raises:
        ModelError: The shapes differ.

    Example:
        >>> paired([[1.0], [2.0]], [1, 2], "MSE")
        (tensor([1., 2.], dtype=torch.float64), tensor([1, 2]))
    """
    given, expected = as_tensor(preds), as_tensor(labels)
    if given.squeeze().shape != expected.squeeze().shape:
        message = (
            f"The metric {metric} was given predictions of shape {list(given.shape)} and labels of shape "
            f"{list(expected.shape)}: expected one shape for both. Bring them to one shape, or choose another metric."
        )
        raise ModelError(message)
    return given.reshape(-1), expected.reshape(-1)


def no_sample(metric: object) -> ConfigError:
    """The error of a result before the first update."""
    return ConfigError(
        f"The metric {metric!r} has no result yet: expected update(preds, labels) with at least one sample before "
        "result(). Evaluate at least one batch."
    )
