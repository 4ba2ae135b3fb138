"""The int8 modules, by the names that they have in saved descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inc_torch.quantizers._int8_conv import Int8Conv1d, Int8Conv2d, Int8Conv3d
from inc_torch.quantizers._int8_conv_transpose import Int8ConvTranspose1d, Int8ConvTranspose2d, Int8ConvTranspose3d
from inc_torch.quantizers._int8_embedding import Int8Embedding
from inc_torch.quantizers._int8_linear import Int8DynamicLinear, Int8Linear
from inc_torch.quantizers._int8_module import Int8Module
from inc_torch.quantizers._weight_only_linear import WeightOnlyLinear

__all__ = ["INT8_CLASSES", "int8_class"]

INT8_CLASSES: Final[Mapping[str, type[Int8Module]]] = {
    made.kind: made
    for made in (
        Int8Linear,
        Int8DynamicLinear,
        Int8Conv1d,
        Int8Conv2d,
        Int8Conv3d,
        Int8ConvTranspose1d,
        Int8ConvTranspose2d,
        Int8ConvTranspose3d,
        Int8Embedding,
        WeightOnlyLinear,
    )
}
"""The class of each kind in a saved description."""


def int8_class(kind: str, *, dynamic: bool) -> type[Int8Module]:
    """The class that a float module of this kind becomes."""
    return INT8_CLASSES[f"dynamic_{kind}" if dynamic and f"dynamic_{kind}" in INT8_CLASSES else kind]
