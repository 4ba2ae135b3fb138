"""Turn int8 modules back into float ones."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import torch
from torch import nn

from inc_torch.core.errors import ModelError

__all__ = ["to_float"]

FLOAT_CLASSES: Final = MappingProxyType(
    {
        "linear": nn.Linear,
        "conv1d": nn.Conv1d,
        "conv2d": nn.Conv2d,
        "conv3d": nn.Conv3d,
        "embedding": nn.Embedding,
    }
)
"""Kind of int8 module -> what it was, or what computes the same (``nn.Linear`` for transformers' ``Conv1D``)."""

INT8_STATE: Final = ("scheme", "float_dtype", "_plan")
"""What int8 modules keep beside their buffers."""


def to_float(module: nn.Module, kind: str) -> None:
    """Make an int8 module a float one again, in place, with the weights that its codes stand for.

    Raises:
        ModelError: There is no float module for this kind.
    """
    if kind not in FLOAT_CLASSES:
        message = f"An int8 module of kind {kind!r} cannot be dequantized: expected one of {', '.join(FLOAT_CLASSES)}."
        raise ModelError(message)
    weight: torch.Tensor = module.weight  # type: ignore[assignment]  # nn.Module does not know its attributes
    bias = module._buffers.get("bias")
    module._buffers.clear()
    for name in INT8_STATE:
        module.__dict__.pop(name, None)
    module.__class__ = FLOAT_CLASSES[kind]
    if kind == "linear":
        module.__dict__.update(out_features=weight.shape[0], in_features=weight.shape[1])
    module.register_parameter("weight", nn.Parameter(weight))
    if kind != "embedding":
        module.register_parameter("bias", None if bias is None else nn.Parameter(bias))
