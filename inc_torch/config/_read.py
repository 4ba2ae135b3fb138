"""Configurations from what people keep them in: objects, dicts, YAML files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from inc_torch.config._base import Config
from inc_torch.config._distillation import DistillationConfig
from inc_torch.config._mixed_precision import MixedPrecisionConfig
from inc_torch.config._post_training import PostTrainingQuantConfig
from inc_torch.config._pruning import WeightPruningConfig
from inc_torch.config._quantization import QuantizationAwareTrainingConfig
from inc_torch.core.errors import ConfigError, ConfigTypeError, did_you_mean

__all__ = ["read_configs"]

_KINDS: dict[str, type[Config]] = {
    kind.__name__: kind
    for kind in (
        WeightPruningConfig,
        QuantizationAwareTrainingConfig,
        DistillationConfig,
        PostTrainingQuantConfig,
        MixedPrecisionConfig,
    )
}
_FORM = "a mapping such as {WeightPruningConfig: {target_sparsity: 0.8}}, or a list of them"


def read_configs(source: object, teacher_model: nn.Module | None = None) -> list[object]:
    """Return the configurations that ``source`` describes, in order.

    Args:
        source: One of

            - a configuration, or anything else that is no description, which is returned as it is;
            - a dict from class names to their options, ``{"WeightPruningConfig": {"target_sparsity": 0.8}}``, or one
              made by ``to_dict``;
            - the path of a YAML file that holds such a dict;
            - a list or tuple of these.
        teacher_model: For every `DistillationConfig` among them that has no teacher, as one from a file.

    Raises:
        ConfigError: A class or an option is unknown or wrong, the file is not there or no YAML, or ``teacher_model``
            is for nobody.

    Example:
        >>> read_configs([{"QuantizationAwareTrainingConfig": {}}, {"WeightPruningConfig": {"target_sparsity": 0.5}}])
        [QuantizationAwareTrainingConfig(), WeightPruningConfig(target_sparsity=0.5)]
    """
    configs = _read(source)
    return configs if teacher_model is None else _taught(configs, teacher_model)


def _taught(configs: list[object], teacher: nn.Module) -> list[object]:
    waiting = [isinstance(conf, DistillationConfig) and conf.teacher_model is None for conf in configs]
    if not any(waiting):
        message = (
            "There is a teacher_model, and no DistillationConfig without a teacher: expected one. Add "
            "DistillationConfig(criterion=KnowledgeDistillationLossConfig())."
        )
        raise ConfigError(message)
    return [
        conf.replace(teacher_model=teacher) if waits and isinstance(conf, DistillationConfig) else conf
        for conf, waits in zip(configs, waiting, strict=True)
    ]


def _read(source: object) -> list[object]:
    if isinstance(source, str | os.PathLike):
        return _from_file(Path(source))
    if isinstance(source, Mapping):
        return _from_mapping(source, "")
    if isinstance(source, Sequence):
        return [config for entry in source for config in _read(entry)]
    return [source]


def _from_file(path: Path) -> list[object]:
    from inc_torch.core.plain_yaml import read_text

    if not path.is_file():
        message = (
            f"There is no configuration file {os.fspath(path)!r} (seen from {os.fspath(Path.cwd())!r}): expected the "
            f"path of a YAML file that holds {_FORM}."
        )
        raise ConfigError(message)
    try:
        content = read_text(path.read_text(encoding="utf-8"), repr(os.fspath(path))).value
    except UnicodeDecodeError as error:
        message = f"{os.fspath(path)!r} is no YAML: {error}."
        raise ConfigError(message) from error
    entries = content if isinstance(content, list) and content else [content]
    where = f" in {os.fspath(path)!r}"
    return [config for entry in entries for config in _from_mapping(entry, where)]


def _from_mapping(content: object, where: str) -> list[object]:
    if not isinstance(content, Mapping) or not content:
        message = f"Got {content!r}{where}: expected {_FORM}."
        raise ConfigTypeError(message)
    if "type" in content:
        return [Config.from_dict(content)]
    return [_build(name, options, where) for name, options in content.items()]


def _build(name: object, options: object, where: str) -> object:
    if not isinstance(name, str) or name not in _KINDS:
        message = (
            f"There is no configuration {name!r}{where}.{did_you_mean(str(name), _KINDS)} Known: {', '.join(_KINDS)}."
        )
        raise ConfigError(message)
    if not isinstance(options, Mapping | None):
        message = f"{name}{where} got {options!r}: expected a mapping from options to values, or nothing."
        raise ConfigTypeError(message)
    build: Callable[..., Any] = _KINDS[name]
    try:
        return build(**(options or {}))
    except ConfigError as error:
        if where:
            error.add_note(f"While reading {name}{where}.")
        raise
