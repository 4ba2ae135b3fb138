"""What a model is run on to see how its layers hang together."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from inc_torch.core.batches import Inputs, split
from inc_torch.core.errors import ModelError
from inc_torch.core.names import unwrapped

__all__ = ["example_inputs"]

_END = object()


def example_inputs(model: nn.Module, dataloader: Iterable[object] | None) -> Inputs:
    """The first batch, or else what transformers' models have for this.

    Raises:
        ModelError: There is neither.
    """
    batch = next(iter(dataloader), _END) if dataloader is not None else _END
    if batch is _END and dataloader is None:
        batch = getattr(unwrapped(model), "dummy_inputs", _END)
    if batch is _END:
        message = (
            f"There is nothing to run {type(unwrapped(model)).__name__} on: expected a dataloader with a batch of "
            "inputs, by which its layers are followed. Give a list of one batch."
        )
        raise ModelError(message)
    return split(batch, model)[0]
