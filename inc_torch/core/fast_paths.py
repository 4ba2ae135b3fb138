"""Kernels of torch that compute whole layers past the modules in them."""

from __future__ import annotations

from torch import nn

__all__ = ["close_fast_paths"]


def close_fast_paths(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Make `torch.nn.TransformerEncoder` call the modules in it in eval, as it does in training.

    In eval it may hand their weights to one fused float kernel. Both flags serve only that choice.

    Args:
        model: Changed in place.
        kinds: Classes whose forward must not be passed by; where none of them is, the fused kernel stays.
    """
    for module in model.modules():
        if not any(isinstance(child, kinds) for child in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
