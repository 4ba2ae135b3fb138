"""The arguments of `fit`, checked before any work is done."""

from __future__ import annotations

from torch import nn

from inc_torch.config import MixedPrecisionConfig
from inc_torch.config._given import require_device
from inc_torch.core.errors import InexactWarning, ModelError
from inc_torch.core.user_warning import warn_user
from inc_torch.precision import precision_for

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
    require_device(type(config).__name__, config.device, model, "converted")
    for name, reason in config.options_without_effect(is_evaluated=is_evaluated).items():
        warn_user(f"MixedPrecisionConfig.{name} has no effect: {reason}.", InexactWarning)
    device = next((tensor.device for tensor in model.parameters()), "cpu")
    word, warning = precision_for(device, config.wanted)
    if warning:
        warn_user(warning, InexactWarning)
    return word
