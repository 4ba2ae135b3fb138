"""The arguments of `fit`, checked before any work is done."""

from __future__ import annotations

from torch import nn

from inc_torch.config import MixedPrecisionConfig
from inc_torch.config._given import require_device
from inc_torch.core.errors import ConfigError, InexactWarning, ModelError
from inc_torch.core.program import require_own_forward
from inc_torch.core.user_warning import warn_user
from inc_torch.ipex import require_extension
from inc_torch.precision import precision_for
from inc_torch.quantizers import describe_int8, fake_quant_modules

__all__ = ["check_feasible"]


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
    require_own_forward(model, "mix_precision.fit")
    require_device(type(config).__name__, config.device, model, "converted")
    if config.backend == "ipex":
        _check_for_extension(model, places)
    for name, reason in config.options_without_effect(is_evaluated=is_evaluated).items():
        warn_user(f"MixedPrecisionConfig.{name} has no effect: {reason}.", InexactWarning)
    device = next((tensor.device for tensor in model.parameters()), "cpu")
    word, warning = precision_for(device, config.wanted)
    if warning:
        warn_user(warning, InexactWarning)
    return word


def _check_for_extension(model: nn.Module, places: set[str]) -> None:
    require_extension("MixedPrecisionConfig(backend='ipex')")
    kind = type(model).__name__
    if elsewhere := sorted(places - {"cpu"}):
        message = (
            f"MixedPrecisionConfig.backend='ipex', but {kind} is on {elsewhere[0]}: expected a model on the CPU. Move "
            "it there with model.to('cpu'), or leave backend out."
        )
        raise ConfigError(message)
    if describe_int8(model) or any(fake_quant_modules(model)):
        message = (
            f"MixedPrecisionConfig.backend='ipex', but {kind} is quantized: expected a float model. For int8 beside "
            "bfloat16 give PostTrainingQuantConfig(backend='ipex') rules that ask for 'bf16', or leave backend out."
        )
        raise ConfigError(message)
