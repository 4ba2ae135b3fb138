"""The arguments of `fit`, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from inc_torch.config import PostTrainingQuantConfig, read_configs
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, ModelError
from inc_torch.core.names import unwrapped
from inc_torch.core.streaming import attached_weights
from inc_torch.core.user_warning import warn_user

__all__ = ["check_data", "check_feasible", "config_of", "model_of"]


def config_of(conf: object, config: object) -> PostTrainingQuantConfig:
    if conf is not None and config is not None:
        message = "quantization.fit got both conf and config: they are the same argument. Leave one out."
        raise ConfigError(message)
    given = conf if config is None else config
    if given is None:
        return PostTrainingQuantConfig()
    if isinstance(given, nn.Module):
        message = "quantization.fit got a model as conf: expected fit(model, conf, ...)."
        raise ConfigTypeError(message)
    configs = read_configs(given)
    if len(configs) != 1 or not isinstance(configs[0], PostTrainingQuantConfig):
        shown = ", ".join(type(entry).__name__ for entry in configs)
        message = f"quantization.fit got conf of type {shown or 'nothing'}: expected one PostTrainingQuantConfig."
        raise ConfigTypeError(message)
    return configs[0]


def model_of(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        message = f"quantization.fit got a model of type {type(model).__name__}: expected a torch.nn.Module."
        raise ConfigTypeError(message)
    return unwrapped(model)


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


_DEVICES = {"gpu": "cuda", "xpu": "xpu", "npu": "npu"}


def check_feasible(model: nn.Module, config: PostTrainingQuantConfig, *, is_evaluated: bool) -> None:
    """Refuse what cannot work, and warn of what has no effect, before any work is done."""
    places = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    if "meta" in places and (attached_weights(model) is None or not config.recipes["layer_wise_quant"]):
        message = (
            f"{type(model).__name__} has weights on the meta device, which holds no values: expected a loaded model, "
            "or one of load_empty_model(path) together with recipes={'layer_wise_quant': True}."
        )
        raise ModelError(message)
    wanted = _DEVICES.get(config.device)
    if wanted is not None and wanted not in places:
        found = ", ".join(sorted(places)) or "no device"
        message = (
            f"PostTrainingQuantConfig.device={config.device!r}, but {type(model).__name__} is on {found}: a model is "
            f"quantized where it is. Move it there with model.to({wanted!r}), or leave device out."
        )
        raise ConfigError(message)
    for name, reason in config.options_without_effect(is_evaluated=is_evaluated).items():
        warn_user(f"PostTrainingQuantConfig.{name} has no effect: {reason}.", InexactWarning)
