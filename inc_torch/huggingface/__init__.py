"""Hugging Face adapters: the Trainer's callback, and hub directories that ``from_pretrained`` opens.

transformers is imported on first use only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from inc_torch.core.optional import require
from inc_torch.huggingface._load import OptimizedModel
from inc_torch.huggingface._save import save_for_huggingface_upstream

if TYPE_CHECKING:
    from inc_torch.huggingface._callback import INCCallback
    from inc_torch.huggingface._empty import load_empty_model

__all__ = ["INCCallback", "OptimizedModel", "load_empty_model", "save_for_huggingface_upstream"]


_ON_DEMAND = {"INCCallback": "_callback", "load_empty_model": "_empty"}
"""Modules that are imported when their name is asked for: they need transformers, or are seldom needed."""


def __getattr__(name: str) -> object:
    """Import what is not imported from the start."""
    if name not in _ON_DEMAND:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    require("transformers", "hf", name)
    return getattr(importlib.import_module(f"inc_torch.huggingface.{_ON_DEMAND[name]}"), name)
