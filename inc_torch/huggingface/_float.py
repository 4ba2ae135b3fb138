"""Turn int8 modules back into float ones."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from inc_torch.core.errors import ModelError

__all__ = ["to_float"]

FLOAT_CLASSES: Final = MappingProxyType(
    {
        "linear": nn.Linear,
        "dynamic_linear": nn.Linear,
        "weight_only_linear": nn.Linear,
        "conv1d": nn.Conv1d,
        "conv2d": nn.Conv2d,
        "conv3d": nn.Conv3d,
        "conv_transpose1d": nn.ConvTranspose1d,
        "conv_transpose2d": nn.ConvTranspose2d,
        "conv_transpose3d": nn.ConvTranspose3d,
        "embedding": nn.Embedding,
    }
)
"""Kind of int8 module -> what it was, or what computes the same (``nn.Linear`` for transformers' ``Conv1D``)."""

INT8_STATE: Final = ("scheme", "float_dtype", "layout", "_plan", "_products")
"""What int8 modules keep beside their buffers."""


def to_float(module: nn.Module, kind: str) -> None:
    """Make an int8 module a float one again, in place, with the weights that its codes stand for.

    What inputs were multiplied with (smoothing) goes into the weights; a bias that quantization added stays.

    Raises:
        ModelError: There is no float module for this kind.
    """
    if kind not in FLOAT_CLASSES:
        message = f"An int8 module of kind {kind!r} cannot be dequantized: expected one of {', '.join(FLOAT_CLASSES)}."
        raise ModelError(message)
    weight = _weight(module, kind)
    bias = module._buffers.get("bias")
    module._buffers.clear()
    for name in INT8_STATE:
        module.__dict__.pop(name, None)
    module.__class__ = FLOAT_CLASSES[kind]
    if module.__class__ is nn.Linear:
        module.__dict__.update(out_features=weight.shape[0], in_features=weight.shape[1])
    module.register_parameter("weight", nn.Parameter(weight))
    if kind != "embedding":
        module.register_parameter("bias", None if bias is None else nn.Parameter(bias.to(torch.float32)))


def _weight(module: nn.Module, kind: str) -> torch.Tensor:
    """The weight in the layout of the float class, for inputs that are not smoothed."""
    own: Any = module
    weight: torch.Tensor = own.weight
    groups: int = getattr(module, "groups", 1)
    factor = module._buffers.get("input_factor")
    if factor is not None:  # one for each input channel; every output of a group reads the same of them
        rows = factor.view(groups, -1).repeat_interleave(len(weight) // groups, 0)
        weight = (weight * rows.view(*rows.shape, *[1] * (weight.dim() - rows.dim()))).to(weight.dtype)
    if not kind.startswith("conv_transpose"):
        return weight
    outputs, inputs, *kernel = weight.shape  # int8 modules keep output channels first
    grouped = weight.view(groups, outputs // groups, inputs, *kernel).transpose(1, 2)
    return grouped.reshape(groups * inputs, outputs // groups, *kernel)
