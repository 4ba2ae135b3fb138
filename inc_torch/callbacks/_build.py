"""From configs to callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from inc_torch.callbacks._compatibility import COMPRESSING, check_callbacks, check_configs
from inc_torch.callbacks._lora import holds_adapters
from inc_torch.callbacks.adapters import AdapterCallbacks
from inc_torch.callbacks.distillation import DistillationCallbacks
from inc_torch.callbacks.precision import MixedPrecisionCallbacks
from inc_torch.callbacks.pruning import PruningCallbacks
from inc_torch.callbacks.quantization import QuantizationAwareTrainingCallbacks
from inc_torch.config import (
    DistillationConfig,
    MixedPrecisionConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)
from inc_torch.core.callback import Callback
from inc_torch.core.errors import ConfigError, ConfigTypeError, InexactWarning
from inc_torch.core.names import unwrapped
from inc_torch.core.user_warning import warn_user

__all__ = ["TrainingConfig", "build_callbacks"]

TrainingConfig = WeightPruningConfig | QuantizationAwareTrainingConfig | DistillationConfig | MixedPrecisionConfig


def build_callbacks(confs: Sequence[object], model: nn.Module) -> list[Callback]:
    """Return one callback a config, in order, looking at the model before anything in it is rewritten.

    One more comes last where a model with adapters of PEFT is pruned or quantized: `AdapterCallbacks`.

    Args:
        confs: The user's list.
        model: The model, in whatever the user wrapped it.

    Raises:
        ConfigTypeError: An entry is neither a config for training nor a `Callback`.
        ConfigError: Configs exclude each other, see `COMBINATIONS`.
        ModelError: The model is int8, or prepared for that by another manager.
    """
    inner = unwrapped(model)
    check_configs(confs, inner)
    compresses = any(isinstance(conf, COMPRESSING) for conf in confs)
    adapters = AdapterCallbacks(model) if compresses and holds_adapters(inner) else None
    callbacks = [_build(conf, inner) for conf in confs]
    check_callbacks(callbacks)
    if adapters is not None:
        adapters.serve(callbacks)
        # After the user's own: the names of callbacks in a saved state count from the first.
        callbacks.append(adapters)
    return callbacks


def _warn_of_options_without_effect(conf: QuantizationAwareTrainingConfig, model: nn.Module) -> None:
    devices = {parameter.device.type for parameter in model.parameters()}
    _warn_of_idle("QuantizationAwareTrainingConfig", conf.options_without_effect(devices))


def _warn_of_idle(name: str, idle: Mapping[str, str]) -> None:
    if idle:
        listed = "; ".join(f"{option} ({reason})" for option, reason in idle.items())
        warn_user(f"Options of {name} without effect here: {listed}.", InexactWarning)


def _refuse_after_training(conf: WeightPruningConfig) -> None:
    if kinds := [spec.after_training for spec in conf.to_specs() if spec.after_training]:
        message = (
            f"WeightPruningConfig.pruning_type={kinds[0]!r} prunes a trained model with calibration data, at once: "
            "expected a type that prunes while a model is trained. Call prepare_pruning(model, config, dataloader=...)."
        )
        raise ConfigError(message)


def _build(conf: object, model: nn.Module) -> Callback:
    match conf:
        case Callback():
            return conf
        case WeightPruningConfig():
            _refuse_after_training(conf)
            return PruningCallbacks(conf.to_specs(), model)
        case QuantizationAwareTrainingConfig():
            _warn_of_options_without_effect(conf, model)
            return QuantizationAwareTrainingCallbacks(
                conf.to_spec(),
                start_step=conf.start_step,
                freeze_observers_step=conf.freeze_observers_step,
                freeze_batch_norm_step=conf.freeze_batch_norm_step,
                as_graph=conf.as_graph,
                on_extension=conf.backend == "ipex",
            )
        case DistillationConfig():
            return DistillationCallbacks(
                conf.to_losses(),
                conf.teacher_model,
                student=model,
                start_step=conf.start_step,
                end_step=conf.end_step,
            )
        case MixedPrecisionConfig():
            idle = conf.options_without_effect(is_evaluated=False, in_training=True)
            _warn_of_idle("MixedPrecisionConfig", idle)
            return MixedPrecisionCallbacks(conf.wanted)
    message = (
        f"prepare_compression got {conf!r} of type {type(conf).__name__}: expected WeightPruningConfig, "
        "QuantizationAwareTrainingConfig, DistillationConfig, MixedPrecisionConfig or a Callback, or a list of them."
    )
    raise ConfigTypeError(message)
