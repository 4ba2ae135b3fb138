"""INC's import path for saving to and loading from Hugging Face directories."""

from __future__ import annotations

from inc_torch.huggingface import OptimizedModel, save_for_huggingface_upstream

__all__ = ["OptimizedModel", "save_for_huggingface_upstream"]
