"""INC's import path for saving to and loading from Hugging Face directories, and for packing weights."""

from __future__ import annotations

import os

import torch
from torch import nn

from inc_torch.export import export_compressed_model as packed
from inc_torch.huggingface import OptimizedModel, save_for_huggingface_upstream
from inc_torch.utils.pytorch import load

__all__ = ["OptimizedModel", "export_compressed_model", "save_for_huggingface_upstream"]


def export_compressed_model(
    model: nn.Module,
    saved_dir: str | os.PathLike[str] | None = None,
    use_optimum_format: bool = True,
    enable_full_range: bool = False,
    compression_dtype: torch.dtype = torch.int32,
    compression_dim: int = 1,
    scale_dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Do what `inc_torch.export.export_compressed_model` does, with a model that may have to be loaded first.

    Args:
        model: Quantized with ``approach="weight_only"``; with ``saved_dir`` the float model as it was built, which is
            then loaded in place.
        saved_dir: Where a weight-only model was saved with ``model.save``; None takes ``model`` as it is.
        use_optimum_format: As there, and so are the others.
        enable_full_range: No effect.
        compression_dtype: What words are.
        compression_dim: Which neighbours are in one word.
        scale_dtype: Of scales and bias.
        device: Where the copy is.

    Raises:
        ArtifactError: ``saved_dir`` holds no such model, or that of another ``model``.
        ConfigError: An argument is not one of these.
        ModelError: There is no layer with packed weights, or one that the layout has no place for.

    Example:
        >>> import tempfile
        >>> from inc_torch import PostTrainingQuantConfig, quantization
        >>> small = quantization.fit(nn.Sequential(nn.Linear(64, 8)), PostTrainingQuantConfig(approach="weight_only"))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     small.save(directory)
        ...     copy = export_compressed_model(nn.Sequential(nn.Linear(64, 8)), directory)
        >>> torch.equal(copy[0].qweight, small.export_compressed_model()[0].qweight)
        True
    """
    return packed(
        model if saved_dir is None else load(saved_dir, model),
        enable_full_range=enable_full_range,
        compression_dtype=compression_dtype,
        compression_dim=compression_dim,
        scale_dtype=scale_dtype,
        device=device,
        use_optimum_format=use_optimum_format,
    )
