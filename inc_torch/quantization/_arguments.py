"""The arguments of `fit`, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from inc_torch.config import PostTrainingQuantConfig
from inc_torch.config._given import require_device
from inc_torch.core.errors import ConfigTypeError, InexactWarning, ModelError
from inc_torch.core.program import require_own_forward
from inc_torch.core.streaming import attached_weights
from inc_torch.core.user_warning import warn_user

__all__ = ["check_data", "check_feasible"]


def check_data(dataloader: object, function: object) -> None:
    if dataloader is not None and not (hasattr(dataloader, "__iter__") or hasattr(dataloader, "__getitem__")):
        message = (
            f"quantization.fit got calib_dataloader of type {type(dataloader).__name__}: expected an iterable of "
            "batches, such as a DataLoader or a list."
        )
        raise ConfigTypeError(message)
    if isinstance(dataloader, Mapping | torch.Tensor):
        message = (
            f"quantization.fit got calib_dataloader of type {type(dataloader).__name__}, which is one batch: expected "
            "an iterable of batches. Put it into a list."
        )
        raise ConfigTypeError(message)
    if function is not None and not callable(function):
        message = f"quantization.fit got calib_func of type {type(function).__name__}: expected a function of a model."
        raise ConfigTypeError(message)


def check_feasible(model: nn.Module, config: PostTrainingQuantConfig, *, is_evaluated: bool) -> None:
    """Refuse what cannot work, and warn of what has no effect, before any work is done."""
    places = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    if "meta" in places and (attached_weights(model) is None or not config.recipes["layer_wise_quant"]):
        message = (
            f"{type(model).__name__} has weights on the meta device, which holds no values: expected a loaded model, "
            "or one of load_empty_model(path) together with recipes={'layer_wise_quant': True}."
        )
        raise ModelError(message)
    require_own_forward(model, "quantization.fit")
    require_device(type(config).__name__, config.device, model, "quantized")
    for name, reason in config.options_without_effect(is_evaluated=is_evaluated).items():
        warn_user(f"PostTrainingQuantConfig.{name} has no effect: {reason}.", InexactWarning)
