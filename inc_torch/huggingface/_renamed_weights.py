"""Weights in a checkpoint of the Trainer that the Trainer itself does not find again."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from inc_torch.core.sharding import plain_class
from inc_torch.export._files import tensor_names

__all__ = ["load_renamed_weights"]

logger = logging.getLogger("inc_torch.huggingface")


def load_renamed_weights(checkpoint: str | os.PathLike[str], model: nn.Module) -> None:
    """Load weights that lie in a checkpoint under other names than the model has; where all names agree, do nothing.

    Files of some models (ViT, Swin, mixtures of experts) keep the names and shapes of before transformers 5.
    ``from_pretrained`` translates them. The Trainer does not: it logs that keys are missing, and goes on with whatever
    weights the model has (transformers 5.23, in ``resume_from_checkpoint`` and in ``load_best_model_at_end``).

    Raises:
        ArtifactError: A file is damaged.
    """
    files = sorted(Path(checkpoint).glob("model*.safetensors"))
    if not isinstance(model, PreTrainedModel) or not files:
        return
    stored = {name for file in files for name in tensor_names(file, "Resume from another checkpoint.")}
    renamed = stored - model.state_dict().keys()
    if not renamed:
        return
    with torch.random.fork_rng():  # a new model is made, which may draw numbers
        saved = plain_class(type(model)).from_pretrained(checkpoint, dtype=model.dtype)  # type: ignore[attr-defined]  # of transformers
    model.load_state_dict(saved.state_dict())
    message = (
        "The Trainer did not load %d weights of %r, as they have other names than those of the model; now they are."
    )
    logger.warning(message, len(renamed), os.fspath(checkpoint))
