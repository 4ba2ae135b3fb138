"""INC's import path for loading what was saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from torch import nn

from inc_torch.export import load as load_own
from inc_torch.export._files import ARTIFACT
from inc_torch.export.inc import find_file, find_summary, load_inc, load_inc_summary

__all__ = ["load", "recover_model_from_json"]

ModelT = TypeVar("ModelT", bound=nn.Module)


def load(checkpoint_dir: str | os.PathLike[str], model: ModelT) -> ModelT:
    """Load a compressed model into ``model``, in place: one of inc_torch, or a quantized one of INC 2.X.

    What INC saved with ``backend="ipex"`` is a program and a summary. The program is never run; the summary has the
    ranges, and ``model`` must have the float weights, see `recover_model_from_json`.

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
    if not (source / ARTIFACT).is_file() and find_summary(source) is not None:
        return load_inc_summary(source, model)
    if not (source / ARTIFACT).is_file() and find_file(source) is not None:
        return load_inc(source, model)
    return load_own(source, model)


def recover_model_from_json(
    model: ModelT, json_file_path: str | os.PathLike[str], example_inputs: object = None
) -> ModelT:
    """Make the int8 model that a ``best_configure.json`` describes, in place; INC's name and arguments.

    Layers get the ranges and scales that the extension had. They run on the default backend, with any torch; what the
    extension computed in int8 besides layers stays in float.

    Args:
        model: The float model, with the weights that it was quantized with.
        json_file_path: The file that INC, or inc_torch, saved with ``backend="ipex"``.
        example_inputs: INC traced the model on them; nothing has to be traced here.

    Returns:
        ``model`` itself, in eval mode.

    Raises:
        ArtifactError: The file is no such summary, or ``model`` is another one.
    """
    del example_inputs
    return load_inc_summary(json_file_path, model)
