"""What a compressed hub directory consists of, and which int8 tensors tie together."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inc_torch.core.errors import ArtifactError
from inc_torch.export._files import (
    ARTIFACT,
    HUB_CONFIG,
    WEIGHTS,
    check_tables,
    pickled_files,
    read_json,
    tensor_names,
    weight_files,
)

__all__ = [
    "CARD",
    "PREVIOUS",
    "REPORT",
    "SAVE_AGAIN",
    "TABLES",
    "VERSION",
    "alarms",
    "check_directory",
    "ignore_alarms",
    "untie",
]

REPORT = "compression_report.json"
CARD = "README.md"
PREVIOUS = ".previous"
"""Where the files of an earlier save lie while they are replaced."""
VERSION = 1
TABLES = {"modules": Mapping, "aliases": str, "checksums": str, "bfloat16": str}
"""What a configuration of ours holds, and of what kind the values of each table are."""
ADVICE = "write_import_inc_torch_before_loading"
"""Name of a tensor that says what to do, in the list of unexpected ones that transformers shows."""
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
            "are not opened, as opening them can run code, but for int8 models that Intel Neural Compressor saved "
            f"(pytorch_model.bin, and torch_dtype int8 in {HUB_CONFIG}). {SAVE_AGAIN}"
        )
        raise ArtifactError(message)
    if not (directory / HUB_CONFIG).is_file():
        message = f"{start} has no {HUB_CONFIG}: expected a directory that from_pretrained can open. {SAVE_AGAIN}"
        if (directory / PREVIOUS / HUB_CONFIG).is_file():
            message += f" What was there before is whole in {os.fspath(directory / PREVIOUS)!r}."
        raise ArtifactError(message)
    config = read_json(directory / HUB_CONFIG, SAVE_AGAIN)
    if not weight_files(directory):
        message = f"{start} has a {HUB_CONFIG} but no *.safetensors: the save was cut short. {SAVE_AGAIN}"
        raise ArtifactError(message)
    _check_weights(directory)
    described = config.get("quantization_config")
    if described is not None:
        is_table = isinstance(described, Mapping)
        method = described.get("quant_method", "") if is_table else None
        if not isinstance(method, str):
            place = "quantization_config" + (".quant_method" if is_table else "")
            message = (
                f"{os.fspath(directory / HUB_CONFIG)!r}: {place} is {reprlib.repr(method if is_table else described)}, "
                f"expected {'text' if is_table else 'an object'}. {SAVE_AGAIN}"
            )
            raise ArtifactError(message)
    return config


def _check_weights(directory: Path) -> None:
    """Make sure that every safetensors file is whole, and that every file of the index is there."""
    for path in weight_files(directory):
        tensor_names(path, SAVE_AGAIN)
    index = directory / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return
    table = {"weight_map": read_json(index, SAVE_AGAIN).get("weight_map") or {}}
    check_tables(table, {"weight_map": str}, repr(os.fspath(index)), SAVE_AGAIN)
    files = set(table["weight_map"].values())
    if outside := sorted(name for name in files if name != Path(name).name):
        message = (
            f"{os.fspath(index)!r} names the file {outside[0]!r}, expected names of files beside it. Nothing else is "
            f"opened. {SAVE_AGAIN}"
        )
        raise ArtifactError(message)
    missing = sorted(name for name in files if not (directory / name).is_file())
    if missing:
        message = (
            f"{os.fspath(directory / missing[0])!r} is missing: {index.name!r} names it among {len(files)} files. "
            f"Copy the whole directory. {SAVE_AGAIN}"
        )
        raise ArtifactError(message)


def alarms(names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Tensors that stop transformers from opening a directory without inc_torch.

    It would only warn of a quantization method that it does not know, make up random weights for the int8 modules
    ``names`` and go on. So each of them has a float weight in the file too, of a shape that cannot be right.
    """
    return {name: torch.zeros(1, dtype=torch.int8) for name in [*(_join(name, "weight") for name in names), ADVICE]}


def ignore_alarms(model: nn.Module, names: Iterable[str]) -> None:
    """Let transformers pass over what `alarms` added to the files."""
    known: Collection[str] | None = getattr(model, "_keys_to_ignore_on_load_unexpected", None)
    patterns = [*(known or ()), *(f"{re.escape(name)}$" for name in alarms(names))]
    # A set in transformers 5, a list in 4.57.
    model.__dict__["_keys_to_ignore_on_load_unexpected"] = set(patterns) if isinstance(known, set) else patterns


def _join(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def untie(model: nn.Module, int8: Mapping[str, nn.Module]) -> None:
    """Let transformers forget each pair of tied weights of which one side is int8 now; `aliases` tie codes instead.

    transformers 5 keeps such pairs in dicts: on the model, expanded, and on each part, as its class declares them.
    """
    expanded = getattr(model, "all_tied_weights_keys", None)
    if isinstance(expanded, dict):
        for target in expanded.keys() - _without_int8(expanded, "", int8).keys():
            expanded.pop(target)
    for name, module in model.named_modules():
        pairs: object = getattr(module, "_tied_weights_keys", None)
        if isinstance(pairs, dict):
            module.__dict__["_tied_weights_keys"] = _without_int8(pairs, name, int8)
        else:
            _untie_by_method(module, int8)


def _without_int8(pairs: Mapping[str, str], part: str, int8: Mapping[str, nn.Module]) -> dict[str, str]:
    def owner(tensor: str) -> str:
        return f"{part}.{tensor}".removeprefix(".").rpartition(".")[0]

    return {target: source for target, source in pairs.items() if not {owner(target), owner(source)} & int8.keys()}


def _untie_by_method(module: nn.Module, int8: Mapping[str, nn.Module]) -> None:
    """The same for transformers 4.57, which calls a method that assigns one side to the other.

    Encoder-decoder models tie more than input and output embeddings there; they fail loudly, and need transformers 5.
    """
    if hasattr(module, "tie_embeddings_and_encoder_decoder"):
        if any(end is one for end in _ends(module) for one in int8.values()):
            module.__dict__["tie_embeddings_and_encoder_decoder"] = _leave_untied
    elif hasattr(module, "_tie_weights") and any(child is one for child in module.children() for one in int8.values()):
        module.__dict__["_tie_weights"] = _leave_untied


def _ends(module: Any) -> Iterator[nn.Module | None]:  # noqa: ANN401  of transformers, imported elsewhere
    with suppress(NotImplementedError):  # by models of sound, which have no embeddings
        yield module.get_input_embeddings()
        yield module.get_output_embeddings()


def _leave_untied() -> None:
    """Stands in for a method of transformers 4.57 that would overwrite int8 weights; a function can be pickled."""
