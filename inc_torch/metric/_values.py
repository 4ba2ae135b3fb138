"""Predictions and labels of any kind as tensors."""

from __future__ import annotations

import numpy as np
import torch

from inc_torch.core.batches import described
from inc_torch.core.errors import ConfigError, ModelError

__all__ = ["as_tensor", "class_ids", "is_count", "no_sample", "paired", "sample_count"]

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


def class_ids(preds: object, labels: object, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both as flat tensors of class ids.

    Predictions with one axis more than the labels are scores, of which the greatest counts. The classes are on axis 1,
    or on the last one where only that gives the labels' shape.

    Raises:
        ModelError: The shapes differ, or the predictions are fractions.

    Example:
        >>> class_ids([[0.1, 0.9], [0.8, 0.2]], [1, 1], "Accuracy")
        (tensor([1, 0]), tensor([1, 1]))
    """
    given, expected = as_tensor(preds), as_tensor(labels)
    if given.squeeze().shape != expected.squeeze().shape:
        axis = next((axis for axis in (1, -1) if _without(given, axis) == expected.shape), None)
        given = given if axis is None else given.argmax(axis)
    ids, expected = paired(given, expected, metric)
    if ids.is_floating_point() and not torch.equal(ids, ids.round()):
        message = (
            f"The metric {metric} was given fractions of shape {list(given.shape)} for labels of the same shape: "
            "expected class ids, or a score for each class. Round them, or let prepare do it."
        )
        raise ModelError(message)
    return ids, expected


def sample_count(labels: torch.Tensor) -> int:
    """Return the length of the first axis; a tensor without axes is one sample."""
    return labels.shape[0] if labels.dim() else 1


def is_count(value: object, least: int = 1) -> bool:
    """Whether ``value`` is an integer of ``least`` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def no_sample(metric: object, what: str = "sample") -> ConfigError:
    """The error of a result before anything was counted."""
    return ConfigError(
        f"The metric {metric!r} has no result yet: expected update(preds, labels) with at least one {what} before "
        "result(). Evaluate at least one batch."
    )


def _without(values: torch.Tensor, axis: int) -> torch.Size | None:
    """The shape of ``values`` without one axis, None if there is no such axis."""
    if values.dim() <= abs(axis):
        return None
    sizes = list(values.shape)
    del sizes[axis]
    return torch.Size(sizes)
