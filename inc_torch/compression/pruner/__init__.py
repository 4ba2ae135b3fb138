"""INC's import path for pruning without hooks, making pruned models smaller, and saving what was prepared."""

from __future__ import annotations

import os
from typing import IO

import torch

from inc_torch.pruners.slimming import model_slim, parse_auto_slim_config
from inc_torch.training import prepare_pruning

__all__ = ["model_slim", "parse_auto_slim_config", "prepare_pruning", "save"]


def save(obj: object, f: str | os.PathLike[str] | IO[bytes]) -> None:
    """Do what `torch.save` does, also with a model or an optimizer that `prepare_pruning` has seen.

    Args:
        obj: What to save; best a ``state_dict``, which opens without running code.
        f: A path, or a file that is open.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> save(torch.nn.Linear(2, 2).state_dict(), file)
        >>> file.seek(0), list(torch.load(file))
        (0, ['weight', 'bias'])

    Source: INC 2.6.1 ``compression.pruner.save``; differs in that there are no hooks that it had to take off.
    """
    torch.save(obj, f)
