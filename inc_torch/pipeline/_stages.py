"""The stages of a pipeline, as the user declares them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

from torch import nn

from inc_torch.callbacks import Callback, QuantizationAwareTrainingCallbacks, TrainingConfig
from inc_torch.config import (
    DistillationConfig,
    MixedPrecisionConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)
from inc_torch.core.errors import ConfigError, ConfigTypeError

if TYPE_CHECKING:
    from inc_torch.pipeline._run import TrainingRun

__all__ = ["TRAINING", "Quantize", "Stage", "Train"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
TRAINING: Final = (
    DistillationConfig,
    WeightPruningConfig,
    QuantizationAwareTrainingConfig,
    MixedPrecisionConfig,
    Callback,
)
_EXPECTED: Final = (
    "a DistillationConfig, WeightPruningConfig, QuantizationAwareTrainingConfig, MixedPrecisionConfig or Callback"
)


@final
@dataclass(frozen=True, slots=True)
class Train:
    """A stage that trains the model in a loop of yours.

    Args:
        confs: One config or `Callback`, or several, as `prepare_compression` takes them.
        train: Your loop, a function of a `TrainingRun`: it trains ``run.model`` and calls the hooks of
            ``run.manager``.
        name: Of the stage, in reports and for its directory; by default what the configs do.
        keep_zeros: Zeros that an earlier stage pruned are locked in layers that this stage does not prune itself.

    Raises:
        ConfigError: There is no config, an object that is none, or ``train`` cannot be called.

    Example:
        >>> from inc_torch import WeightPruningConfig
        >>> Train(WeightPruningConfig(target_sparsity=0.5), train=lambda run: None).name
        'prune'
    """

    confs: TrainingConfig | Callback | Sequence[TrainingConfig | Callback]
    train: Callable[[TrainingRun], object]
    _: KW_ONLY
    name: str = ""
    keep_zeros: bool = True

    def __post_init__(self) -> None:
        listed: Any = list(self.confs) if isinstance(self.confs, list | tuple) else [self.confs]
        if not listed:
            message = f"Train got an empty list of configs: expected {_EXPECTED}, or several. To only run code, do so."
            raise ConfigError(message)
        for place, conf in enumerate(listed):
            if not isinstance(conf, TRAINING):
                hint = " Use a stage Quantize(config, ...)." if isinstance(conf, PostTrainingQuantConfig) else ""
                raise _wrong_type(conf, "Train", f"confs[{place}]", _EXPECTED, hint)
        if not callable(self.train):
            raise _wrong_type(self.train, "Train", "train", "your training loop, a function of a TrainingRun")
        object.__setattr__(self, "confs", tuple(listed))
        object.__setattr__(self, "name", _checked_name("Train", self.name or "+".join(self.techniques)))

    @property
    def configs(self) -> tuple[TrainingConfig | Callback, ...]:
        """The configs, always several."""
        return self.confs  # type: ignore[return-value]  # made so above

    @property
    def techniques(self) -> tuple[str, ...]:
        """What the stage does, a word for each technique, without repeating one."""
        return tuple(dict.fromkeys(map(_technique, self.configs)))

    @property
    def quantizes(self) -> bool:
        """Whether the model is int8 afterwards."""
        return any(
            isinstance(conf, QuantizationAwareTrainingConfig | QuantizationAwareTrainingCallbacks)
            for conf in self.configs
        )

    def describe(self) -> dict[str, Any]:
        """What makes it this stage and no other, in plain values."""
        configs = [
            {"type": type(conf).__name__} if isinstance(conf, Callback) else conf.to_dict() for conf in self.configs
        ]
        return {"kind": "train", "name": self.name, "keep_zeros": self.keep_zeros, "configs": configs}


def _technique(conf: TrainingConfig | Callback) -> str:
    match conf:
        case DistillationConfig():
            return "distil"
        case WeightPruningConfig():
            return "lock" if all(spec.locks_zeros for spec in conf.to_specs()) else "prune"
        case QuantizationAwareTrainingConfig():
            return "quantize"
    return "train"


@final
@dataclass(frozen=True, slots=True)
class Quantize:
    """A stage that quantizes the trained model, by `inc_torch.quantization.fit`; the last one.

    Args:
        conf: What to do; by default static int8.
        calib_dataloader: Batches for ranges of inputs.
        calib_func: Runs the model that it is given on data of its own.
        eval_func: Returns the accuracy of the model that it is given: a search is run then.
        eval_dataloader: Labelled batches to evaluate on, together with ``eval_metric``.
        eval_metric: See `inc_torch.quantization.fit`.
        name: Of the stage, in reports and for its directory.
        keep_zeros: Zeros that an earlier stage pruned have to be zeros of the result; it is an error if one is lost.

    Raises:
        ConfigTypeError: An argument is of the wrong kind.

    Example:
        >>> Quantize(calib_dataloader=[]).name
        'quantize'
    """

    conf: PostTrainingQuantConfig | None = None
    _: KW_ONLY
    calib_dataloader: Iterable[Any] | None = None
    calib_func: Callable[[nn.Module], object] | None = None
    eval_func: Callable[[nn.Module], float] | None = None
    eval_dataloader: Iterable[Any] | None = None
    eval_metric: object = None
    name: str = "quantize"
    keep_zeros: bool = True

    def __post_init__(self) -> None:
        conf: object = self.conf
        if conf is not None and not isinstance(conf, PostTrainingQuantConfig):
            hint = " Use a stage Train(config, train)." if isinstance(conf, TRAINING) else ""
            raise _wrong_type(conf, "Quantize", "conf", "a PostTrainingQuantConfig or None", hint)
        object.__setattr__(self, "conf", conf or PostTrainingQuantConfig())
        _checked_name("Quantize", self.name)

    @property
    def techniques(self) -> tuple[str, ...]:
        """What the stage does."""
        return ("quantize",)

    @property
    def quantizes(self) -> bool:
        """Always."""
        return True

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Those of `inc_torch.quantization.fit`, but for the model."""
        names = ("conf", "calib_dataloader", "calib_func", "eval_func", "eval_dataloader", "eval_metric")
        return {name: getattr(self, name) for name in names}

    def describe(self) -> dict[str, Any]:
        """What makes it this stage and no other, in plain values."""
        configs = [] if self.conf is None else [self.conf.to_dict()]
        return {"kind": "quantize", "name": self.name, "keep_zeros": self.keep_zeros, "configs": configs}


Stage: TypeAlias = Train | Quantize


def _checked_name(owner: str, name: object) -> str:
    if not isinstance(name, str):
        raise _wrong_type(name, owner, "name", "a string")
    if not _NAME.fullmatch(name):
        want = "letters, digits and any of _ . + -, as it also names a directory"
        raise ConfigError.field(owner, "name", name, want)
    return name


def _wrong_type(got: object, owner: str, name: str, want: str, hint: str = "") -> ConfigTypeError:
    if isinstance(got, type):
        hint = hint or f" {got.__name__} is a class: give an object of it."
    return ConfigTypeError(f"{owner} got {name}={got!r} of type {type(got).__name__}: expected {want}.{hint}")
