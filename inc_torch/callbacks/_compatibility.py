"""Which configs go together, and what they need of the model: the table of docs/orchestration.md, and its checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from torch import nn

from inc_torch.callbacks.precision import MixedPrecisionCallbacks
from inc_torch.callbacks.pruning import PruningCallbacks
from inc_torch.callbacks.quantization import QuantizationAwareTrainingCallbacks
from inc_torch.config import MixedPrecisionConfig, QuantizationAwareTrainingConfig, WeightPruningConfig
from inc_torch.core.callback import Callback
from inc_torch.core.errors import ConfigError, IncTorchError, InexactWarning, ModelError
from inc_torch.core.names import named_layers
from inc_torch.core.sharding import plain_class
from inc_torch.core.user_warning import warn_user
from inc_torch.pruners import Pruner
from inc_torch.quantizers import Int8Module, code_name, fake_quant_modules

__all__ = ["COMBINATIONS", "COMPRESSING", "Combination", "check_callbacks", "check_configs"]

QUANTIZING: Final = (QuantizationAwareTrainingConfig, QuantizationAwareTrainingCallbacks)
PRECISION: Final = (MixedPrecisionConfig, MixedPrecisionCallbacks)
COMPRESSING: Final = (WeightPruningConfig, PruningCallbacks, *QUANTIZING)


@final
@dataclass(frozen=True, slots=True)
class Combination:
    """A row of the table.

    Attributes:
        what: What comes together.
        outcome: Whether it works, works with a warning, or is refused before the model is touched.
        meaning: What happens, or the way out.
    """

    what: str
    outcome: Literal["works", "warns", "refused"]
    meaning: str


TWO_QUANTIZERS: Final = Combination(
    "two quantization configs",
    "refused",
    "Put the rules of both into op_name_dict and op_type_dict of one.",
)
TWO_PRECISIONS: Final = Combination(
    "two mixed precision configs",
    "refused",
    "A forward runs under one autocast. Give both precisions to one, the preferred one first.",
)
INT8_MODEL: Final = Combination(
    "pruning or quantization, and a model with int8 modules",
    "refused",
    "Codes cannot be trained. Start from the float model, and quantize last.",
)
PREPARED_MODEL: Final = Combination(
    "pruning or quantization, and a model that was prepared for quantization before",
    "refused",
    "Give all configs to one prepare_compression, and build the model anew.",
)
LATE_LOCK: Final = Combination(
    "a pattern lock that begins while another config still changes masks of the same layer",
    "refused",
    "What the pruner takes back, the lock would hold. Lock from the pruner's start_step on, or leave the lock out: "
    "masks are locked after end_step anyway.",
)
TWO_PRUNERS: Final = Combination(
    "two pruning configs, or a pattern lock and a pruning config, on the same layer",
    "warns",
    "All of their masks apply, so more may be pruned than any one asks. Keep them apart with op_names or "
    "excluded_op_names.",
)

COMBINATIONS: Final = (
    Combination("pruning, quantization", "works", "Masked weights are the code of zero in the int8 model."),
    Combination("distillation, pruning", "works", "The target is reached under the teacher's loss."),
    Combination("distillation, pattern lock", "works", "Every weight that was zero stays zero, the others learn."),
    Combination("distillation, quantization", "works", "The rounded model learns from the teacher in float."),
    Combination(
        "distillation, pattern lock, quantization", "works", "Every zero is the code of zero in the int8 model."
    ),
    Combination("distillation, pruning, quantization", "works", "As each two of them."),
    Combination("several distillation configs", "works", "Each adds to the loss that the one before returned."),
    Combination(
        "mixed precision, any of these",
        "works",
        "Forwards run under autocast; weights, masks, ranges and the teacher stay in float32.",
    ),
    Combination("callbacks of your own, anywhere", "works", "They run by their stage."),
    TWO_PRUNERS,
    LATE_LOCK,
    TWO_QUANTIZERS,
    TWO_PRECISIONS,
    INT8_MODEL,
    PREPARED_MODEL,
)
"""In any order of the configs."""


def check_configs(confs: Sequence[object], model: nn.Module) -> None:
    """Refuse what cannot be, by the configs and the model alone.

    Args:
        confs: The user's list.
        model: The model inside its wrappers, before anything in it is rewritten.

    Raises:
        ConfigError: Two configs exclude each other.
        ModelError: The model is not what they can begin with.
    """
    quantizing = [place for place, conf in enumerate(confs) if isinstance(conf, QUANTIZING)]
    if len(quantizing) > 1:
        places = " and ".join(f"confs[{place}]" for place in quantizing)
        raise _refused(ConfigError, TWO_QUANTIZERS, f"prepare_compression got two quantization configs, {places}")
    precisions = [place for place, conf in enumerate(confs) if isinstance(conf, PRECISION)]
    if len(precisions) > 1:
        places = " and ".join(f"confs[{place}]" for place in precisions)
        raise _refused(ConfigError, TWO_PRECISIONS, f"prepare_compression got two mixed precision configs, {places}")
    compressing = next((conf for conf in confs if isinstance(conf, COMPRESSING)), None)
    if compressing is not None:
        _check_model(type(compressing).__name__, model)


def _check_model(asked: str, model: nn.Module) -> None:
    int8 = {name: module for name, module in named_layers(model) if isinstance(module, Int8Module)}
    if int8:
        first = next(iter(int8.values()))
        done = f"converted to {code_name(first.scheme)}"
        raise _refused(ModelError, INT8_MODEL, _found(asked, model, list(int8), done))
    prepared = [name for name, module in fake_quant_modules(model) if module.has_weight]
    if prepared:
        raise _refused(ModelError, PREPARED_MODEL, _found(asked, model, prepared, "prepared for quantization"))


def _found(asked: str, model: nn.Module, names: Sequence[str], done: str) -> str:
    more = f", and so are {len(names) - 1} more of {plain_class(type(model)).__name__}" if len(names) > 1 else ""
    return f"Module {names[0]!r} is already {done}{more}: {asked} expected a float model"


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse what cannot be, and warn of what is unusual, by the layers that were chosen.

    Raises:
        ConfigError: Two pruners exclude each other.
    """
    pruners = [pruner for each in callbacks if isinstance(each, PruningCallbacks) for pruner in each.pruners]
    for lock, pruner, name in _late_locks(pruners):
        start = (
            f"prepare_compression got a pattern_lock with start_step={lock.spec.start} and a pruner of {name!r} whose "
            f"masks change from {'epoch' if pruner.spec.counts_epochs else 'step'} {pruner.spec.start} to "
            f"{pruner.spec.end}"
        )
        raise _refused(ConfigError, LATE_LOCK, start)
    taken = Counter(layer.name for pruner in pruners for layer in pruner.layers)
    twice = [name for name, count in taken.items() if count > 1]
    if twice:
        start = f"{len(twice)} layer(s) are taken by several pruning configs: {', '.join(map(repr, twice[:3]))}"
        warn_user(f"{start}. {TWO_PRUNERS.meaning}", InexactWarning)


def _late_locks(pruners: Sequence[Pruner]) -> Iterator[tuple[Pruner, Pruner, str]]:
    for lock in pruners:
        for pruner in pruners:
            spec = pruner.spec
            # Where epochs are counted, nobody knows yet which steps they have.
            is_late = lock.spec.start > 0 if spec.counts_epochs else spec.start < lock.spec.start <= spec.end
            if not (lock.spec.locks_zeros and is_late):
                continue
            ours = {layer.name for layer in lock.layers}
            yield from ((lock, pruner, layer.name) for layer in pruner.layers if layer.name in ours)


def _refused(kind: Callable[[str], IncTorchError], row: Combination, start: str) -> IncTorchError:
    return kind(f"{start}. {row.meaning}")
