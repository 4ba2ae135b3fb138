"""The arguments of `fit`, checked before any work is done."""

from __future__ import annotations

from torch import nn

from inc_torch.config import MixedPrecisionConfig, read_configs
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning, ModelError
from inc_torch.core.names import unwrapped
from inc_torch.core.user_warning import warn_user
from inc_torch.precision import precision_for

__all__ = ["check_feasible", "config_of", "model_of"]

_DEVICES = {"gpu": "cuda", "xpu": "xpu", "npu": "npu"}


def config_of(conf: object, config: object) -> MixedPrecisionConfig:
    if conf is not None and config is not None:
        message = "mix_precision.fit got both conf and config: they are the same argument. Leave one out."
        raise ConfigError(message)
    given = conf if config is None else config
    if given is None:
        return MixedPrecisionConfig()
    if isinstance(given, nn.Module):
        message = "mix_precision.fit got a model as conf: expected fit(model, conf, ...)."
        raise ConfigTypeError(message)
    configs = read_configs(given)
    if len(configs) != 1 or not isinstance(configs[0], MixedPrecisionConfig):
        shown = ", ".join(type(entry).__name__ for entry in configs)
        message = f"mix_precision.fit got conf of type {shown or 'nothing'}: expected one MixedPrecisionConfig."
        raise ConfigTypeError(message)
    return configs[0]


def model_of(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        message = f"mix_precision.fit got a model of type {type(model).__name__}: expected a torch.nn.Module."
        raise ConfigTypeError(message)
    return unwrapped(model)


def check_feasible(model: nn.Module, config: MixedPrecisionConfig, *, is_evaluated: bool) -> str | None:
    """Refuse what cannot work, and warn of what has no effect or makes slower, before any work is done.

    Returns:
        ``"bf16"`` or ``"fp16"``; None if nothing is to be converted.
    """
    places = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    if "meta" in places:
        message = (
            f"{type(model).__name__} has weights on the meta device, which holds no values: expected a loaded model."
        )
        raise ModelError(message)
    wanted = _DEVICES.get(config.device)
    if wanted is not None and wanted not in places:
        found = ", ".join(sorted(places)) or "no device"
        message = (
            f"MixedPrecisionConfig.device={config.device!r}, but {type(model).__name__} is on {found}: a model is "
            f"converted where it is. Move it there with model.to({wanted!r}), or leave device out."
        )
        raise ConfigError(message)
    for name, reason in config.options_without_effect(is_evaluated=is_evaluated).items():
        warn_user(f"MixedPrecisionConfig.{name} has no effect: {reason}.", InexactWarning)
    device = next((tensor.device for tensor in model.parameters()), "cpu")
    word, warning = precision_for(device, config.wanted)
    if warning:
        warn_user(warning, InexactWarning)
    return word
