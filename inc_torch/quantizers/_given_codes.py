"""Int8 modules made of codes and scales that somebody else found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from inc_torch.core.errors import ModelError
from inc_torch.quantizers._eligibility import close_fast_paths
from inc_torch.quantizers._fake_quant_modules import fake_quant_class
from inc_torch.quantizers._int8_modules import int8_class
from inc_torch.quantizers._scheme_names import scheme_name
from inc_torch.quantizers._spec import QuantScheme

__all__ = ["GivenCodes", "adopt_codes", "reason_against_codes"]


@final
@dataclass(frozen=True, slots=True)
class GivenCodes:
    """What an int8 linear layer or convolution consists of.

    Attributes:
        weight: int8, ``[out, in / groups, *kernel]``.
        scale: float32, ``[out]``.
        bias: float32, ``[out]``, or None.
        scheme: How inputs are rounded.
        input_range: Scale and zero point of the input; None where the scheme is dynamic.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    scheme: QuantScheme
    input_range: tuple[float, int] | None


def reason_against_codes(module: nn.Module, shape: torch.Size, *, is_dynamic: bool) -> str | None:
    """Why ``module`` cannot be made an int8 module with a weight of this shape, as part of a sentence; None if it can.

    Example:
        >>> reason_against_codes(nn.Linear(4, 2), torch.Size([2, 4]), is_dynamic=False)
        >>> reason_against_codes(nn.Linear(4, 2), torch.Size([4, 2]), is_dynamic=False)
        'its weight has shape (2, 4), the codes (4, 2)'
        >>> reason_against_codes(nn.ReLU(), torch.Size([2]), is_dynamic=False)
        'a ReLU has no int8 form'
    """
    present = fake_quant_class(type(module))
    if present is None:
        return f"a {type(module).__name__} has no int8 form"
    if is_dynamic and int8_class(present.kind, dynamic=True) is int8_class(present.kind, dynamic=False):
        return f"a {type(module).__name__} has no form with dynamic ranges"
    own = tuple(present.arranged(module, module.get_parameter("weight")).shape)
    return None if own == tuple(shape) else f"its weight has shape {own}, the codes {tuple(shape)}"


def adopt_codes(model: nn.Module, layers: Mapping[str, GivenCodes]) -> None:
    """Turn modules of ``model`` into int8 modules with these codes, in place.

    Args:
        model: A float model; the weights of the modules named do not matter.
        layers: By module name.

    Raises:
        ModelError: A module cannot be made one, see `reason_against_codes`. The model is then unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> codes = torch.tensor([[100, -100]], dtype=torch.int8)
        >>> adopt_codes(model, {"0": GivenCodes(codes, torch.tensor([0.01]), None, QuantScheme(), (0.1, 0))})
        >>> model(torch.tensor([[2.04, 0.5]]))  # rounded to 2.0 and 0.5
        tensor([[1.5000]])
    """
    for name, given in layers.items():
        reason = reason_against_codes(model.get_submodule(name), given.weight.shape, is_dynamic=given.scheme.dynamic)
        if reason is not None:
            message = f"{name!r} of {type(model).__name__} cannot take int8 codes: {reason}."
            raise ModelError(message)
    for name, given in layers.items():
        _adopt(model.get_submodule(name), given)
    close_fast_paths(model)


def _adopt(module: nn.Module, given: GivenCodes) -> None:
    present = fake_quant_class(type(module))
    if present is None:
        return
    device = module.get_parameter("weight").device
    buffers: dict[str, torch.Tensor | None] = {
        "qweight": given.weight.to(device, torch.int8),
        "weight_scale": given.scale.to(device, torch.float32),
        "bias": None if given.bias is None else given.bias.to(device, torch.float32),
        "input_factor": None,
    }
    if given.input_range is not None:
        scale, zero_point = given.input_range
        buffers["input_scale"] = torch.tensor(scale, device=device)
        buffers["input_zero_point"] = torch.tensor(zero_point, dtype=torch.int32, device=device)
    kind = int8_class(present.kind, dynamic=given.scheme.dynamic)
    kind.adopt(module, scheme_name(given.scheme), buffers)
