"""What quantization leaves in float, in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from inc_torch import precision
from inc_torch.core.errors import InexactWarning
from inc_torch.core.user_warning import warn_user
from inc_torch.quantizers import FloatType, Prepared

__all__ = ["left_to_bfloat16"]


def left_to_bfloat16(model: nn.Module, decisions: Mapping[str, Prepared], *, unasked: bool) -> dict[str, Prepared]:
    """Let modules that quantization left in float compute in bfloat16, in place, if the processor is made for that.

    Args:
        model: Quantized and converted.
        decisions: What `prepare_fake_quant` decided for its modules.
        unasked: Not only those of which a rule says so, but also those that have no int8 version, such as LSTM.

    Returns:
        The decisions, with what changed.
    """
    asked = [name for name, made in decisions.items() if made.float_type is FloatType.BFLOAT16]
    without_int8 = [name for name, made in decisions.items() if made.scheme is None and made.float_type is None]
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    if not precision.has_bfloat16(device):
        for name in asked:
            message = f"{name!r} was to compute in bfloat16, which this processor lacks: it stays in float32."
            warn_user(message, InexactWarning)
        return dict(decisions)
    names = asked + (without_int8 if unasked else [])
    # Without those that cannot, others that are tied to them cannot either.
    while reasons := precision.reasons_against_bfloat16(model, names):
        for name in set(asked) & reasons.keys():
            warn_user(f"{name!r} was to compute in bfloat16: {reasons[name]}. It stays in float32.", InexactWarning)
        names = [name for name in names if name not in reasons]
    precision.compute_in_bfloat16(model, names)
    reasons = dict.fromkeys(asked, "as the configuration asks")
    return {
        name: made._replace(scheme=precision.SCHEME, reason=reasons.get(name, made.reason)) if name in names else made
        for name, made in decisions.items()
    }
