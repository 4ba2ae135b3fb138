"""What a compressed hub directory consists of, and which int8 tensors tie together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from inc_torch.core.errors import ArtifactError
from inc_torch.export._files import ARTIFACT, HUB_CONFIG, pickled_files, read_json, weight_files

__all__ = ["CARD", "REPORT", "SAVE_AGAIN", "VERSION", "check_directory", "pretrained_parts", "untie"]

REPORT = "compression_report.json"
CARD = "README.md"
VERSION = 1
SAVE_AGAIN = "Save the model again with save_for_huggingface_upstream(model, tokenizer, directory)."


def check_directory(directory: Path) -> dict[str, Any]:
    """Make sure that ``directory`` is a Hugging Face directory with safetensors; return its configuration.

    Raises:
        ArtifactError: It is something else; the message says what, and what opens it.
    """
    start = f"{os.fspath(directory)!r}"
    if not directory.exists():
        message = (
            f"{start} does not exist: expected a directory or the name of a model on the Hub (owner/model). "
            f"Check the path (it is seen from {os.fspath(Path.cwd())!r})."
        )
        raise ArtifactError(message)
    if not directory.is_dir():
        message = f"{start} is a file: expected a directory or the name of a model on the Hub. Give the directory."
        raise ArtifactError(message)
    if (directory / ARTIFACT).is_file() and not (directory / HUB_CONFIG).is_file():
        message = (
            f"{start} is a plain inc_torch directory ({ARTIFACT}), expected a Hugging Face one ({HUB_CONFIG}). "
            "Load it with inc_torch.load(directory, model=...)."
        )
        raise ArtifactError(message)
    if not weight_files(directory) and (pickled := pickled_files(directory)):
        message = (
            f"{start} holds pickled weights ({', '.join(map(repr, pickled))}), expected *.safetensors. Pickled files "
            "are never opened, as opening them can run code; those that Intel Neural Compressor saved cannot be opened "
            f"by this version. {SAVE_AGAIN}"
        )
        raise ArtifactError(message)
    if not (directory / HUB_CONFIG).is_file():
        message = f"{start} has no {HUB_CONFIG}: expected a directory that from_pretrained can open. {SAVE_AGAIN}"
        raise ArtifactError(message)
    config = read_json(directory / HUB_CONFIG, SAVE_AGAIN)
    if not weight_files(directory):
        message = f"{start} has a {HUB_CONFIG} but no *.safetensors: the save was cut short. {SAVE_AGAIN}"
        raise ArtifactError(message)
    return config


def pretrained_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of ``model`` that transformers may tie weights of, the model first."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "_tied_weights_keys"))


def untie(model: nn.Module, int8: Mapping[str, nn.Module]) -> None:
    """Let transformers forget each pair of tied weights of which one side is int8 now; `aliases` tie codes instead.

    transformers 5 keeps pairs in dicts on the model; 4.57 ties input and output embeddings by calling a method.
    """
    pairs = getattr(model, "all_tied_weights_keys", None)
    if isinstance(pairs, dict):
        for target in [target for target, source in pairs.items() if _owned(target, int8) or _owned(source, int8)]:
            pairs.pop(target)
    for name, module in pretrained_parts(model):
        keys: object = module._tied_weights_keys
        if isinstance(keys, dict):
            kept = {
                target: source
                for target, source in keys.items()
                if not (_owned(_join(name, target), int8) or _owned(_join(name, source), int8))
            }
            module._tied_weights_keys = kept  # type: ignore[assignment]  # nn.Module knows tensors and modules only
        elif keys is not None and hasattr(module, "tie_embeddings_and_encoder_decoder"):
            ends = (module.get_input_embeddings(), module.get_output_embeddings())  # type: ignore[operator]
            if any(end is not None and end in int8.values() for end in ends):
                module.tie_embeddings_and_encoder_decoder = _leave_untied  # type: ignore[assignment]


def _leave_untied() -> None:
    """Stands in for a method of transformers 4.57 that would overwrite int8 weights; a function can be pickled."""


def _owned(tensor_name: str, int8: Mapping[str, nn.Module]) -> bool:
    return tensor_name.rpartition(".")[0] in int8


def _join(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf
