"""The adapter for Lightning's Trainer. Lightning is imported on first use only."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from inc_torch.core.optional import require

if TYPE_CHECKING:
    from inc_torch.lightning._callback import INCLightningCallback

__all__ = ["INCLightningCallback"]


def __getattr__(name: str) -> object:
    """Import `INCLightningCallback` when it is asked for: its base class is in Lightning."""
    if name != "INCLightningCallback":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    if importlib.util.find_spec("pytorch_lightning") is None:  # the same under its old name
        require("lightning", "trainers", name)
    return importlib.import_module("inc_torch.lightning._callback").INCLightningCallback
