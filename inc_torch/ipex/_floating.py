"""The float model that an int8 model stands for: the same values, in modules that the extension knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import nn

from inc_torch.core.borrowing import borrowing_copy
from inc_torch.core.errors import ModelError
from inc_torch.core.names import named_layers
from inc_torch.ipex._summary import Grid, LayerCodes
from inc_torch.precision import compute_in_float
from inc_torch.quantizers import Int8Module, WeightOnlyLinear

__all__ = ["float_counterpart", "layer_codes", "with_plain_layers"]

_CLASSES: Final[dict[str, type[nn.Module]]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
    "embedding": nn.Embedding,
}


def with_plain_layers(model: nn.Module) -> nn.Module:
    """A copy with Parameters of its own, in which linear layers of transformers' ``Conv1D`` are ``nn.Linear``."""
    made = borrowing_copy(model)
    made.eval()
    _own_all_(made)
    _name_linear_(made)
    return made


def _name_linear_(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if _is_transposed_linear(module):
            weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
            _replace(model, name, _linear(weight.detach().t(), bias))


def _is_transposed_linear(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def float_counterpart(model: nn.Module) -> nn.Module:
    """A copy of an int8 model in float, with the values that its codes stand for.

    Raises:
        ModelError: A module has no such counterpart.
    """
    lent = [buffer for module in model.modules() if isinstance(module, Int8Module) for buffer in module.buffers()]
    made = borrowing_copy(model, lent)
    made.__dict__.pop("forward", None)
    _own_all_(made)
    compute_in_float(made)
    for name, module in list(made.named_modules()):
        if isinstance(module, Int8Module):
            _restore(made, name, module)
    _name_linear_(made)
    return made.eval()


def _restore(root: nn.Module, name: str, module: Int8Module) -> None:
    kind = _CLASSES.get(module.replaces)
    weight, bias = module._float_weight(), module._buffers.get("bias")
    if module.replaces == "linear" and not isinstance(module, WeightOnlyLinear):
        _replace(root, name, _linear(weight, bias))
        return
    if kind is None:
        message = f"Module {name!r} is of kind {module.kind!r}, which the extension has no counterpart of."
        raise ModelError(message)
    if module.replaces.startswith("conv_transpose"):
        weight = _transposed_back(module, weight)
    for key in list(module._buffers):
        del module._buffers[key]
    for key in ("scheme", "float_dtype", "_plan", "_arithmetic"):
        module.__dict__.pop(key, None)
    module.__class__ = kind  # type: ignore[assignment]  # geometry and all else stay
    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    if not isinstance(module, nn.Embedding):
        module._parameters["bias"] = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)


_MATRIX: Final = 2


def _transposed_back(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """From [out, in / groups, *kernel] to what transposed convolutions keep: [in, out / groups, *kernel]."""
    groups = int(module.groups)  # type: ignore[arg-type]  # of torch's own class
    outputs, inputs, *kernel = weight.shape
    grouped = weight.view(groups, outputs // groups, inputs, *kernel).transpose(1, 2)
    return grouped.reshape(groups * inputs, outputs // groups, *kernel).contiguous()


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer._parameters["weight"] = nn.Parameter(weight.contiguous().float(), requires_grad=False)
    if bias is not None:
        layer._parameters["bias"] = nn.Parameter(bias.detach().clone().float(), requires_grad=False)
    return layer.eval()


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    root.get_submodule(owner)._modules[leaf] = module


def _own_all_(model: nn.Module) -> None:
    """Give a copy Parameters of its own: the extension changes the memory format of weights in place."""
    own: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = own.setdefault(id(parameter), nn.Parameter(parameter.detach().clone(), requires_grad=False))
                module._parameters[name] = made


def layer_codes(model: nn.Module) -> dict[str, LayerCodes]:
    """How each int8 layer of a model computes, by name; embeddings are no layers here."""
    return {name: _codes_of(module) for name, module in _int8_layers(named_layers(model))}


def _int8_layers(modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, Int8Module]]:
    return [
        (name, module)
        for name, module in modules
        if isinstance(module, Int8Module) and module._buffers.get("input_scale") is not None
    ]


def _codes_of(module: Int8Module) -> LayerCodes:
    buffers = module._buffers
    scale, zero = buffers["input_scale"], buffers["input_zero_point"]
    factor, rank = buffers.get("input_factor"), module.qweight.dim() - _MATRIX
    return LayerCodes(
        Grid(float(scale), int(zero)),  # type: ignore[arg-type]  # both are there
        module.weight_scale,
        None if factor is None else factor.view(-1, *[1] * rank),
    )
