"""What scripts call on a model because INC's wrapper around it had it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from inc_torch.core.errors import LayerNotFoundError, ModelError, did_you_mean
from inc_torch.core.names import named_layers
from inc_torch.core.report import CompressionReport
from inc_torch.core.sharding import plain_class
from inc_torch.export._proof import attached_report, measured_report

__all__ = ["INC_MEMBERS"]


def _quantized_state_dict(self: nn.Module) -> dict[str, Any]:
    """The same as ``state_dict()``."""
    return self.state_dict()


def _load_quantized_state_dict(self: nn.Module, stat_dict: Mapping[str, Any]) -> object:
    """The same as ``load_state_dict(...)``."""
    return self.load_state_dict(stat_dict)


class SparsityReport(NamedTuple):
    """The report, and the share of zeros in the weights of its rows in percent: a pair that prints as a table."""

    table: CompressionReport
    total_sparsity: float

    def __str__(self) -> str:
        return f"{self.table}\nzeros in all modules: {self.total_sparsity:.1f}%"


def _report_sparsity(self: nn.Module) -> SparsityReport:
    """Return the report and the share of zeros in the weights of its rows, in percent."""
    report = measured_report(self, attached_report(self))
    values = sum(row.numel for row in report.modules)
    return SparsityReport(report, 100 * sum(row.zeros for row in report.modules) / values if values else 0.0)


def _get_all_weight_names(self: nn.Module) -> list[str]:
    """Names of all parameters."""
    return [name for name, _ in self.named_parameters()]


def _get_weight(self: nn.Module, tensor_name: str) -> nn.Parameter:
    """Return the parameter of that name."""
    return _parameter(self, tensor_name)


def _update_weights(self: nn.Module, tensor_name: str, new_tensor: object) -> None:
    """Write new values into a parameter."""
    parameter = _parameter(self, tensor_name)
    with torch.no_grad():
        parameter.copy_(_like(parameter, tensor_name, new_tensor))


def _get_gradient(self: nn.Module, input_tensor: str | torch.Tensor) -> torch.Tensor:
    """Return the gradient of a parameter, by its name, or of a tensor."""
    tensor = _parameter(self, input_tensor) if isinstance(input_tensor, str) else input_tensor
    if tensor.grad is None:
        message = f"get_gradient({input_tensor!r}): there is none; expected a backward before."
        raise ModelError(message)
    return tensor.grad


def _update_gradient(self: nn.Module, grad_name: str, new_grad: object) -> None:
    """Give a parameter another gradient."""
    parameter = _parameter(self, grad_name)
    parameter.grad = _like(parameter, grad_name, new_grad)


def _prune_weights_(self: nn.Module, tensor_name: str, mask: object) -> None:
    """Multiply a parameter by a mask, in place."""
    parameter = _parameter(self, tensor_name)
    with torch.no_grad():
        parameter.mul_(_like(parameter, tensor_name, mask))


def _graph_info(self: nn.Module) -> dict[str, str]:
    """The class of each layer, by name."""
    return {name: plain_class(type(layer)).__name__ for name, layer in named_layers(self) if name}


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    parameters = dict(model.named_parameters())
    if name not in parameters:
        kind = plain_class(type(model)).__name__
        message = f"{kind} has no parameter {name!r}.{did_you_mean(name, parameters)}"
        raise LayerNotFoundError(message)
    return parameters[name]


def _like(parameter: nn.Parameter, name: str, given: object) -> torch.Tensor:
    """Tensors and arrays as what they are to be written over."""
    tensor = torch.as_tensor(given, dtype=parameter.dtype, device=parameter.device)
    if tensor.shape != parameter.shape:
        message = f"{name!r} has the shape {tuple(parameter.shape)}: got values of shape {tuple(tensor.shape)}."
        raise ModelError(message)
    return tensor


INC_MEMBERS: Final[Mapping[str, Any]] = {
    "quantized_state_dict": _quantized_state_dict,
    "load_quantized_state_dict": _load_quantized_state_dict,
    "report_sparsity": _report_sparsity,
    "get_all_weight_names": _get_all_weight_names,
    "get_weight": _get_weight,
    "update_weights": _update_weights,
    "get_gradient": _get_gradient,
    "update_gradient": _update_gradient,
    "prune_weights_": _prune_weights_,
    "graph_info": property(_graph_info),
}
"""By the name that they have on an adorned model whose class has none of that name."""
