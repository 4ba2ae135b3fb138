"""The one function of this package that users call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from inc_torch.core.batches import Inputs, run
from inc_torch.core.errors import ConfigError, ConfigTypeError, ModelError
from inc_torch.core.modes import evaluating
from inc_torch.core.program import require_own_forward
from inc_torch.inference._compiled_call import CompiledCall
from inc_torch.inference._graphs import TOLERANCE, run_graph_fused
from inc_torch.inference._opaque import can_hide, hide
from inc_torch.quantizers import fake_quant_modules, is_graph

__all__ = ["optimize_for_inference"]


def optimize_for_inference(model: nn.Module, example_inputs: Any = None, *, tolerance: float = TOLERANCE) -> nn.Module:  # noqa: ANN401
    """Let an int8 model run fused, in place.

    Args:
        model: What `quantization.fit` returned, or another model with int8 modules.
        example_inputs: What to warm up with, so that no later call has to: a mapping of keyword arguments, a tuple or
            list of positional ones, or the only one. None leaves it to the first call.
        tolerance: How far the fused model may be from the model as it is: root mean square of the difference over
            that of each output.

    Returns:
        ``model``, in eval mode.

    Raises:
        ConfigTypeError: ``model`` is no module, or ``tolerance`` no number.
        ConfigError: ``tolerance`` is below 0 or not a number.
        ModelError: The model has no int8 layers that compute on codes, or runs on Intel's extension.
        Exception: What the model itself raises on ``example_inputs``; it is then as it was.
    """
    modules = _fusible(model)
    _check_tolerance(tolerance)
    if example_inputs is not None:
        _try(model, _as_inputs(example_inputs))
    model.eval().requires_grad_(requires_grad=False)
    if is_graph(model):
        run_graph_fused(model, tolerance)
    else:
        for module in modules:
            hide(module)
        model._compiled_call_impl = CompiledCall(model, tolerance)  # where compile() puts it
    if example_inputs is not None:
        with torch.no_grad():
            run(model, _as_inputs(example_inputs))
    return model


def _fusible(model: object) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a model of type {type(model).__name__}"
        message = f"optimize_for_inference got {what}: expected a torch.nn.Module, as quantization.fit returns it."
        raise ConfigTypeError(message)
    require_own_forward(model, "optimize_for_inference")
    modules = [module for module in model.modules() if can_hide(module)]
    if modules:
        return modules
    if any(fake_quant_modules(model)):
        message = (
            f"{type(model).__name__} has no int8 layers yet, it is in quantization-aware training: call "
            "on_train_end of its manager first."
        )
    else:
        message = (
            f"{type(model).__name__} has no int8 layers that can be fused: expected what quantization.fit returns with "
            "approach 'static', 'dynamic' or 'auto'. Layers of approach 'weight_only' compute in float."
        )
    raise ModelError(message)


def _check_tolerance(tolerance: object) -> None:
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        message = (
            f"optimize_for_inference got a tolerance of type {type(tolerance).__name__}: expected a number, 0 or more."
        )
        raise ConfigTypeError(message)
    if not tolerance >= 0:
        message = f"optimize_for_inference got tolerance {tolerance}: expected 0 or more."
        raise ConfigError(message)


def _try(model: nn.Module, inputs: Inputs) -> None:
    """Let the model as it is compute, so that its own error comes, and before anything is changed."""
    with evaluating(model), torch.no_grad():
        run(model, inputs)


def _as_inputs(example: object) -> Inputs:
    if isinstance(example, Mapping):
        return Inputs(kwargs=dict(example))
    return Inputs(args=tuple(example) if isinstance(example, tuple | list) else (example,))
