"""INC's import path for loading what was saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from torch import nn

from inc_torch.export import load as load_own
from inc_torch.export._files import ARTIFACT
from inc_torch.export.inc import find_file, load_inc

__all__ = ["load"]

ModelT = TypeVar("ModelT", bound=nn.Module)


def load(checkpoint_dir: str | os.PathLike[str], model: ModelT) -> ModelT:
    """Load a compressed model into ``model``, in place: one of inc_torch, or a quantized one of INC 2.X.

    Args:
        checkpoint_dir: The directory that was saved to, or INC's file in it.
        model: The float model as it was built to be compressed, with any weights.

    Returns:
        ``model`` itself, in eval mode.

    Raises:
        ArtifactError: There is no such model, the file is damaged or could run code, or ``model`` is another one.

    Example:
        >>> load("no/such/place", nn.Linear(2, 2))
        Traceback (most recent call last):
            ...
        inc_torch.core.errors.ArtifactError: 'no/such/place' does not exist: expected a directory ...
    """
    source = Path(checkpoint_dir)
    if not (source / ARTIFACT).is_file() and find_file(source) is not None:
        return load_inc(source, model)
    return load_own(source, model)
