"""What the extension has no kernel for, and what its summary is called: all that is needed without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inc_torch.quantizers import FloatType, QuantRule, QuantSpec

__all__ = ["SUMMARY", "WITHOUT_KERNEL", "for_extension"]

SUMMARY: Final = "best_configure.json"
"""The name of the summary beside the weights, which is that of Intel Neural Compressor."""

WITHOUT_KERNEL: Final = ("Embedding", "Conv1d", "ConvTranspose1d")
"""Layers that the default backend computes in int8 and the extension does not."""


def for_extension(spec: QuantSpec) -> QuantSpec:
    """Leave layers in float that the extension cannot compute in int8, unless a rule of the user says more.

    Example:
        >>> for_extension(QuantSpec()).treatment_of("tokens", "Embedding")
        <FloatType.FLOAT32: 'float32'>
    """
    rules = tuple(QuantRule("type", kind, FloatType.FLOAT32) for kind in WITHOUT_KERNEL)
    return replace(spec, rules=(*rules, *spec.rules))
