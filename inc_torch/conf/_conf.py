"""A whole file, or a dict with what a file would hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, final

from inc_torch.conf._attributes import AttributeTree
from inc_torch.conf._distillation import DISTILLATION, distillation_config
from inc_torch.conf._evaluation import EVALUATION, benchmark_config
from inc_torch.conf._model import DEVICE, MODEL
from inc_torch.conf._precision import MIXED_PRECISION, mixed_precision_config
from inc_torch.conf._pruning import PRUNING, pruning_config
from inc_torch.conf._quantization import QUANTIZATION, quantization_config
from inc_torch.conf._schema import Field, Note, Reading, Section
from inc_torch.conf._tuning import TUNING
from inc_torch.conf._words import as_it_is
from inc_torch.config import (
    BenchmarkConfig,
    DistillationConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)
from inc_torch.config._checks import flag
from inc_torch.core.errors import ConfigError, ConfigTypeError
from inc_torch.core.plain_yaml import read_text

__all__ = ["Conf", "Config2X", "Translation", "read_conf"]

Config2X = (
    PostTrainingQuantConfig
    | QuantizationAwareTrainingConfig
    | WeightPruningConfig
    | DistillationConfig
    | MixedPrecisionConfig
    | BenchmarkConfig
)
Source = str | os.PathLike[str] | Mapping[str, object]

_TECHNIQUES: Final = ("quantization", "pruning", "distillation", "mixed_precision", "graph_optimization")
_SECTIONS: Final = {
    "quantization": QUANTIZATION,
    "pruning": PRUNING,
    "distillation": DISTILLATION,
    "mixed_precision": MIXED_PRECISION,
    "graph_optimization": MIXED_PRECISION,
}
_FILE: Final = Section(
    {
        "version": Field(as_it_is, 2.0),
        "model": MODEL,
        "device": DEVICE,
        "use_bf16": Field(flag, default=True),
        **_SECTIONS,
        "tuning": TUNING,
        "evaluation": EVALUATION,
    },
    others={"model_conversion": "it turns trained graphs of TensorFlow into deployed ones"},
    present=True,
)


def _places(section: Section, path: str = "") -> Iterator[tuple[str, str]]:
    for name, schema in section.fields.items():
        if path:
            yield name, path
        if isinstance(schema, Section):
            yield from _places(schema, f"{path}.{name}" if path else name)


def _by_key() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, path in _places(_FILE):
        if path not in found.setdefault(name, []):
            found[name].append(path)
    return found


_KNOWN: Final = _by_key()
"""The sections that each key belongs to."""


@final
@dataclass(frozen=True, slots=True)
class Translation:
    """What a file says, in the configurations of today.

    Attributes:
        configs: One for each technique that the file speaks of; for a benchmark a `BenchmarkConfig`.
        notes: What has no effect any more, or another one.
    """

    configs: tuple[Config2X, ...]
    notes: tuple[Note, ...]


class Conf:
    """What a 1.X file says, checked.

    Args:
        source: A path to YAML, a dict with what YAML would hold, the global `inc_torch.conf.config.conf`, another
            `Conf`, or None for the defaults.

    Attributes:
        usr_cfg: All sections, every known key with its value or default, to be read as attributes; read-only.
        name: Of the file, for messages.
        is_given: Whether there was a source.

    Raises:
        ConfigError: The content is wrong; the message has the line.
        ConfigFileError: There is no such file.

    Example:
        >>> conf = Conf({"quantization": {"approach": "post_training_dynamic_quant"}})
        >>> conf.usr_cfg.quantization.approach
        'dynamic'
        >>> conf.translate().configs
        (PostTrainingQuantConfig(approach='post_training_dynamic_quant'),)

    Source: INC 2.6.1 ``conf.config.Conf``; differs in that a file is never written to, that a misspelt attribute is an
    error, and that lists stay lists.
    """

    technique: ClassVar[str | None] = None
    """The section that there has to be; it is made of defaults where there is no source."""

    def __init__(self, source: Source | Conf | None = None) -> None:
        if isinstance(source, Conf):
            source = source._given
        self.is_given = source is not None
        self._given: Source | None = source
        content, self._reading = _opened(type(self).__name__, source)
        if self.technique is not None and not any(name in content for name in _of(self.technique)):
            content = {**content, self.technique: {}}
        # A technique that is named and nothing said of it is wanted as it is by default.
        content = {key: {} if key in _TECHNIQUES and value is None else value for key, value in content.items()}
        self.usr_cfg: Any = _FILE.read(content, (), self._reading)
        self.name = self._reading.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def translate(self) -> Translation:
        """Return the same in the configurations of today.

        Raises:
            ConfigError: Values that are right by themselves do not go together.
        """
        known = len(self._reading.notes)
        try:
            configs = tuple(self._configs())
        except ConfigError as error:
            if str(error).startswith(self.name):
                raise
            raise self._reading.error((), str(error), type(error)) from error
        notes = tuple(self._reading.notes)
        del self._reading.notes[known:]
        return Translation(configs, notes)

    def _configs(self) -> Iterator[Config2X]:
        content = self.usr_cfg
        if content.quantization is not None:
            yield quantization_config(content)
        if content.pruning is not None:
            yield pruning_config(content, self._reading)
        if content.distillation is not None:
            yield distillation_config(content)
        if content.mixed_precision is not None or content.graph_optimization is not None:
            half = mixed_precision_config(content)
            if half is not None:
                yield half
        if all(content[name] is None for name in _TECHNIQUES):
            yield benchmark_config(content.evaluation, content.device)


def _of(technique: str | None) -> tuple[str, ...]:
    if technique is None:
        return ()
    return ("mixed_precision", "graph_optimization") if technique == "mixed_precision" else (technique,)


def read_conf(source: Source | Conf | None = None) -> Conf:
    """Read a 1.X file or dict of any kind.

    Example:
        >>> read_conf({"evaluation": {"performance": {"warmup": 10}}}).translate().configs
        (BenchmarkConfig(warmup=10),)
    """
    return Conf(source)


def _opened(owner: str, source: object) -> tuple[Mapping[str, object], Reading]:
    if source is None:
        return {}, Reading(owner, elsewhere=_KNOWN)
    if isinstance(source, AttributeTree):
        return source.filled(), Reading(owner, elsewhere=_KNOWN)
    if isinstance(source, Mapping):
        return source, Reading(owner, elsewhere=_KNOWN)
    if not isinstance(source, str | os.PathLike):
        message = f"{owner} got {source!r} of type {type(source).__name__}: expected a path to YAML, a dict or a Conf."
        raise ConfigTypeError(message)
    path = Path(source)
    if not path.is_file():
        raise ConfigFileError(owner, path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        message = f"{path}: this is no text in UTF-8: {error}."
        raise ConfigError(message) from error
    read = read_text(text, str(path))
    reading = Reading(str(path), read.lines, elsewhere=_KNOWN)
    if read.value is None or not isinstance(read.value, Mapping):
        problem = f"expected a mapping with sections such as {', '.join(_TECHNIQUES[:3])}, not {read.value!r}."
        raise reading.error((), problem, ConfigTypeError)
    return read.value, reading


@final
class ConfigFileError(ConfigError, FileNotFoundError):
    """There is no such file."""

    def __init__(self, owner: str, path: Path) -> None:
        near = path.parent if path.parent.is_dir() else None
        others = sorted(entry.name for pattern in ("*.yaml", "*.yml") for entry in near.glob(pattern)) if near else []
        hint = f" There are: {', '.join(others[:5])}." if others else ""
        super().__init__(f"{owner} got {str(path)!r}: there is no such file, seen from {str(Path.cwd())!r}.{hint}")
