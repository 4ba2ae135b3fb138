"""Hugging Face adapters: the Trainer's callback, and hub directories that ``from_pretrained`` opens.

transformers is imported on first use only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from inc_torch.core.optional import require
from inc_torch.huggingface._empty import load_empty_model
from inc_torch.huggingface._load import OptimizedModel
from inc_torch.huggingface._save import save_for_huggingface_upstream

if TYPE_CHECKING:
    from inc_torch.huggingface._callback import INCCallback

__all__ = ["INCCallback", "OptimizedModel", "load_empty_model", "save_for_huggingface_upstream"]


def __getattr__(name: str) -> object:
    """Import `INCCallback` when it is asked for: its base class is in transformers."""
    if name != "INCCallback":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    require("transformers", "hf", name)
    return importlib.import_module("inc_torch.huggingface._callback").INCCallback
