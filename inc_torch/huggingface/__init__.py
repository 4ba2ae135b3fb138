"""Hugging Face adapters: hub directories that ``from_pretrained`` opens. Imports transformers on first use only."""

from __future__ import annotations

from inc_torch.huggingface._load import OptimizedModel
from inc_torch.huggingface._save import save_for_huggingface_upstream

__all__ = ["OptimizedModel", "save_for_huggingface_upstream"]
