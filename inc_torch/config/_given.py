"""The first arguments of entry points, which all of them check alike."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from inc_torch.config._base import Config
from inc_torch.config._read import read_configs
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.names import unwrapped

__all__ = ["given_config", "given_model", "require_device"]

_Kind = TypeVar("_Kind", bound=Config)
_DEVICES = {"gpu": "cuda", "xpu": "xpu", "npu": "npu"}


def given_config(where: str, kind: type[_Kind], conf: object, config: object) -> _Kind:
    """The one config that ``conf``, or ``config``, which is the same argument, stands for.

    Args:
        where: What was called, for messages.
        kind: Of the config; its default is taken where none was given.
        conf: A config, or what `read_configs` reads.
        config: The same.

    Raises:
        ConfigError: Both were given, or what was given is wrong.
        ConfigTypeError: It is not one config of this kind.
    """
    if conf is not None and config is not None:
        message = f"{where} got both conf and config: they are the same argument. Leave one out."
        raise ConfigError(message)
    given = conf if config is None else config
    if given is None:
        return kind()
    if isinstance(given, nn.Module):
        message = f"{where} got a model as conf: expected fit(model, conf, ...)."
        raise ConfigTypeError(message)
    configs = read_configs(given)
    if len(configs) != 1 or not isinstance(configs[0], kind):
        shown = ", ".join(type(entry).__name__ for entry in configs)
        message = f"{where} got conf of type {shown or 'nothing'}: expected one {kind.__name__}."
        raise ConfigTypeError(message)
    return configs[0]


def given_model(where: str, model: object) -> nn.Module:
    """The module inside what wraps it.

    Raises:
        ConfigTypeError: It is no module.
    """
    if not isinstance(model, nn.Module):
        message = f"{where} got a model of type {type(model).__name__}: expected a torch.nn.Module."
        raise ConfigTypeError(message)
    return unwrapped(model)


def require_device(owner: str, device: str, model: nn.Module, done: str) -> None:
    """Refuse a ``device`` on which the model is not.

    Args:
        owner: Name of the config.
        device: As it says.
        model: The model.
        done: What is done to it, for the message.

    Raises:
        ConfigError: It is somewhere else.
    """
    places = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    wanted = _DEVICES.get(device)
    if wanted is not None and wanted not in places:
        found = ", ".join(sorted(places)) or "no device"
        message = (
            f"{owner}.device={device!r}, but {type(model).__name__} is on {found}: a model is "
            f"{done} where it is. Move it there with model.to({wanted!r}), or leave device out."
        )
        raise ConfigError(message)
