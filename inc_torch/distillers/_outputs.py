"""Finding the logits in what a model returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from inc_torch.core.errors import ModelError

__all__ = ["TEACHER_LOGITS", "described", "extract_logits", "parts_of"]

TEACHER_LOGITS: Final = "teacher_logits"
"""The key under which a batch brings what a teacher said of it."""

PAIRS = (("start_logits", "end_logits"), ("logits_per_image", "logits_per_text"))
"""Two tensors of one shape: of question answering, and of images beside texts (CLIP)."""
_PAIRS_NAMED = " or ".join(f"{first!r} and {second!r}" for first, second in PAIRS)


def extract_logits(output: object) -> torch.Tensor:
    """Return the logits in a model's output.

    - A tensor is the logits.
    - In a mapping (a dict, a Hugging Face ``ModelOutput``) they are ``"logits"``; else the only tensor in it; else
      ``"start_logits"`` followed by ``"end_logits"`` along the batch axis, so that a mean over the result is the
      mean of the two; else ``"logits_per_image"`` followed by ``"logits_per_text"`` in the same way.
    - In a tuple or list they are the first item, or the second one where the first is a scalar (the loss).

    Raises:
        ModelError: There is nothing of the kind; the message lists what was found.

    Example:
        >>> import torch
        >>> extract_logits({"loss": torch.tensor(0.3), "logits": torch.tensor([[1.0, 2.0]])})
        tensor([[1., 2.]])
        >>> extract_logits((torch.tensor(0.3), torch.tensor([[1.0, 2.0]])))
        tensor([[1., 2.]])
    """
    if isinstance(output, torch.Tensor):
        return output
    found: object = None
    if isinstance(output, Mapping):
        found = _from_mapping(output)
    elif isinstance(output, tuple | list):
        found = _from_sequence(output)
    if isinstance(found, torch.Tensor):
        return found
    message = (
        f"No logits were found in a model output of {described(output)}: expected "
        f"a tensor, a mapping with 'logits', with one tensor or with {_PAIRS_NAMED}, or a tuple or "
        "list that starts with the logits or with a scalar loss and the logits. Pass the logits themselves."
    )
    raise ModelError(message)


def _from_mapping(output: Mapping[object, object]) -> object:
    if "logits" in output:
        return output["logits"]
    tensors = [value for value in parts_of(output) if isinstance(value, torch.Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    for names in PAIRS:
        first, second = (output.get(name) for name in names)
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            return _joined(names, first, second)
    return None


def _joined(names: tuple[str, str], first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    if first.shape != second.shape:
        message = (
            f"{names[0]} of shape {tuple(first.shape)} and {names[1]} of shape {tuple(second.shape)} differ: "
            "expected one shape for both. Pass the logits themselves."
        )
        raise ModelError(message)
    return torch.cat([first, second])


def _from_sequence(output: Sequence[object]) -> object:
    if not output:
        return None
    first = output[0]
    starts_with_loss = isinstance(first, torch.Tensor) and first.dim() == 0 and len(output) > 1
    return output[1] if starts_with_loss else first


def described(output: object) -> str:
    """What an output is and holds, for a message.

    Example:
        >>> described((torch.zeros(2, 3), None))
        'type tuple with tensor of shape (2, 3), NoneType'
    """
    return f"type {type(output).__name__} with {_contents(output)}"


def parts_of(output: object) -> list[object]:
    """What an output consists of: the values of a mapping, the items of a tuple or list, or the output alone.

    Example:
        >>> parts_of({"a": 1, "b": 2}), parts_of((1, 2)), parts_of(1)
        ([1, 2], [1, 2], [1])
    """
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else [output]


def _contents(output: object) -> str:
    if isinstance(output, Mapping):
        items = [f"{name!r}: {_described(value)}" for name, value in output.items()]
    elif isinstance(output, tuple | list):
        items = [_described(value) for value in output]
    else:
        return "no items"
    return ", ".join(items) or "no items"


def _described(value: object) -> str:
    return f"tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
