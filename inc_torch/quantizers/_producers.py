"""Modules whose output can be divided channel by channel through their own weights: norms, linear layers, convolutions.

Dividing a weight and a bias along the output channels divides the output, where the module is affine in them. That
holds for the layers of torch; of a norm that anybody may have written it is tried out (`absorbing_axis`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from inc_torch.core.sharding import plain_class
from inc_torch.quantizers._fake_quant_modules import FakeQuantModule, fake_quant_class

__all__ = ["absorbing_axis", "can_produce", "divide_output_", "own_tensors", "replace_tensors_"]

_TOLERANCE: Final = 1e-3
"""Scales of a trial are powers of two, so nothing is rounded; what does not follow is off by a factor."""
_MATRIX_RANK: Final = 2


def can_produce(module: nn.Module) -> bool:
    """Whether ``module`` is of a kind that may absorb a scale: a layer that has an int8 version, or a norm by name."""
    layer = _layer_class(module)
    return "Norm" in type(module).__name__ if layer is None else layer.has_input_grid


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weight and the bias of ``module`` that exist, also where they are buffers, as in a frozen batch norm."""
    owned = {**module._buffers, **module._parameters}
    return {name: tensor for name in ("weight", "bias") if (tensor := owned.get(name)) is not None}


def replace_tensors_(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give ``module`` new Parameters and buffers; who else holds the old ones keeps them as they are."""
    for name, tensor in tensors.items():
        before = module._parameters.get(name)
        if before is None:
            module._buffers[name] = tensor
        else:
            module._parameters[name] = nn.Parameter(tensor.detach(), requires_grad=before.requires_grad)


def divide_output_(module: nn.Module, scale: torch.Tensor) -> None:
    """Divide the output channels of a module by ``scale``, through its weight and bias, which are new ones then.

    Args:
        module: One that `can_produce`, with a weight.
        scale: [out], above 0.

    Example:
        >>> norm = nn.LayerNorm(2)
        >>> divide_output_(norm, torch.tensor([2.0, 4.0]))
        >>> norm.weight.tolist()
        [0.5, 0.25]
    """
    replace_tensors_(module, {name: _divided(module, tensor, scale) for name, tensor in own_tensors(module).items()})


def absorbing_axis(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
) -> int | None:
    """Find the axis of ``output`` that is divided when the weights of ``module`` are, by trying it.

    Args:
        module: One that `can_produce`, in eval mode; it is as before afterwards.
        args: What its forward got.
        kwargs: What its forward got by name.
        output: What its forward returned.

    Returns:
        None if no axis is divided as it should be, as in a norm that multiplies with ``1 + weight``.

    Example:
        >>> norm, x = nn.BatchNorm1d(3).eval(), torch.randn(2, 3, 5)
        >>> absorbing_axis(norm, (x,), {}, norm(x))
        1
    """
    tensors = own_tensors(module)
    if "weight" not in tensors or (_layer_class(module) is None and tensors["weight"].dim() != 1):
        return None
    channels = _output_channels(module, tensors["weight"])
    scale = torch.exp2((torch.arange(channels, device=output.device) % 3 - 1).float())
    with _divided_output(module, scale):
        again = module.forward(*args, **kwargs)
    if not isinstance(again, torch.Tensor) or again.shape != output.shape:
        return None
    axes = [axis for axis in reversed(range(output.dim())) if output.shape[axis] == channels]
    return next((axis for axis in axes if _is_divided(again, output, scale, axis)), None)


def _layer_class(module: nn.Module) -> type[FakeQuantModule] | None:
    own = plain_class(type(module))
    return own if issubclass(own, FakeQuantModule) else fake_quant_class(own)


def _output_channels(module: nn.Module, weight: torch.Tensor) -> int:
    layer = _layer_class(module)
    if layer is None or layer.output_axis == 0:
        return len(weight)
    return weight.shape[1] * _groups(module)


def _groups(module: nn.Module) -> int:
    groups: int = getattr(module, "groups", 1)
    return groups


def _along_output(module: nn.Module, tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Shape a value for each output channel so that it divides the weight or the bias."""
    layer = _layer_class(module)
    if layer is None or tensor.dim() < _MATRIX_RANK:
        return scale
    if layer.output_axis == 0:
        return scale.view(-1, *[1] * (tensor.dim() - 1))
    groups = _groups(module)  # a row for each input channel: its group decides which outputs it has
    rows = scale.view(groups, -1).repeat_interleave(len(tensor) // groups, 0)
    return rows.view(*rows.shape, *[1] * (tensor.dim() - _MATRIX_RANK))


def _divided(module: nn.Module, tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    along = _along_output(module, tensor, scale.to(tensor.device))
    return (tensor.detach() / along).to(tensor.dtype)


@contextmanager
def _divided_output(module: nn.Module, scale: torch.Tensor) -> Iterator[None]:
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    divide_output_(module, scale)
    try:
        yield
    finally:
        module._parameters.update(parameters)
        module._buffers.update(buffers)


def _is_divided(again: torch.Tensor, output: torch.Tensor, scale: torch.Tensor, axis: int) -> bool:
    shaped = scale.view(-1, *[1] * (output.dim() - 1 - axis))
    expected, restored = output.float(), again.float() * shaped
    return torch.allclose(restored, expected, rtol=_TOLERANCE, atol=_TOLERANCE * 1e-3)
