"""Which modules can be int8, and for the others the reason why not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from inc_torch.core import fast_paths
from inc_torch.core.names import named_layers
from inc_torch.core.sharding import plain_class
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule, fake_quant_class
from inc_torch.quantizers._int8_module import Int8Module

__all__ = ["close_fast_paths", "matrix_modules", "reason_for_float"]

MATRIX_RANK = 2


def matrix_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of everything that owns a weight of rank 2 or more, itself and not through children.

    Names are those without wrappers, and the matrices of LoRA adapters are left out, see `named_layers`.
    """
    for name, module in named_layers(model):
        if _owns_matrix(module) and not isinstance(module, parametrize.ParametrizationList):
            yield name, module


def _owns_matrix(module: nn.Module) -> bool:
    if parametrize.is_parametrized(module):  # its tensors lie in a child and are computed by properties
        return any(_owns_matrix(child) for child in module.parametrizations.children())  # type: ignore[union-attr]
    own = [*module._parameters.values(), module.__dict__.get("weight")]
    return any(isinstance(tensor, torch.Tensor) and (is_lazy(tensor) or tensor.dim() >= MATRIX_RANK) for tensor in own)


def reason_for_float(module: nn.Module) -> str | None:
    """Say why ``module`` must stay in float, or None if it can be int8."""
    own = plain_class(type(module))
    if fake_quant_class(own) is None:
        return _reason_of_class(module, own)
    weight = module._parameters.get("weight")
    reasons = {
        "its weight is computed by a hook and is not a Parameter": weight is None,
        "its weight is not initialised yet; run one batch before": weight is not None and is_lazy(weight),
        "its forward was replaced on the instance": "forward" in module.__dict__,
    }
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        return reason
    if weight is not None and (not weight.is_floating_point() or weight.dtype.itemsize == 1):
        return f"its weight is {weight.dtype}"
    return "its weight is empty" if weight is not None and weight.numel() == 0 else None


def _reason_of_class(module: nn.Module, own: type[nn.Module]) -> str:
    bases = [base for base in own.__mro__[1:] if fake_quant_class(base) is not None]
    if bases:
        return (
            f"{own.__name__} is a subclass of {bases[0].__name__}; what it or its owner does with the weight is not "
            "known"
        )
    if isinstance(module, nn.EmbeddingBag):
        return "EmbeddingBag sums rows inside its kernel, where they cannot be rounded"
    return f"there is no int8 version of {own.__name__}"


def close_fast_paths(model: nn.Module) -> None:
    """Make `torch.nn.TransformerEncoder` call its quantized layers in eval, as it does in training."""
    fast_paths.close_fast_paths(model, (FakeQuantModule, Int8Module))
