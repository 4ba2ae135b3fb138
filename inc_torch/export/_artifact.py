"""Save a compressed model to a directory, and load it into a model that the user's code builds."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from inc_torch import inference, precision
from inc_torch.core.errors import ArtifactError, did_you_mean
from inc_torch.core.files import made_directory
from inc_torch.core.report import CompressionReport
from inc_torch.export._files import (
    ARTIFACT,
    HUB_CONFIG,
    WEIGHTS,
    as_noted,
    check_tables,
    file_facts,
    pickled_files,
    read_json,
    read_tensors,
    replacing,
    weight_files,
    write_json,
    write_tensors,
)
from inc_torch.export._proof import attach_report, attached_report, measured_report, prove_report, read_report
from inc_torch.export._ranks import assembled, write_once
from inc_torch.export._tensors import int8_modules, plain_state, share_equal_codes, split_name, tied_groups
from inc_torch.inference import run_graph_fused
from inc_torch.quantizers import describe_graph, describe_int8, rebuild_int8

__all__ = ["SAVE_AGAIN", "load", "read_description", "save"]

FORMAT = "inc_torch"
VERSION = 1
SAVE_AGAIN = "Save the model again with manager.save(directory)."
DICTIONARIES = ("modules", "graph", "bfloat16", "aliases", "weights", "report", "ipex")

ModelT = TypeVar("ModelT", bound=nn.Module)


def save(model: nn.Module, directory: str | os.PathLike[str], report: CompressionReport | None = None) -> None:
    """Write ``model`` to ``directory`` as ``model.safetensors`` and ``compression.json``; nothing is pickled.

    Tied tensors are written once. The report is measured again from the weights that are written. A write that is cut
    short leaves what was there before, or a directory that `load` refuses where there was nothing.

    In a distributed run rank 0 writes, and the ranks that call this too return when it has. Of a sharded model (FSDP2)
    the whole tensors are written, for which every rank has to call it.

    Args:
        model: Any module, pruned, quantized, both or neither.
        directory: Made if it does not exist.
        report: What was asked of each module; the report that the model carries, if there is none.

    Raises:
        ArtifactError: ``directory`` is a file, or holds a Hugging Face model that would be overwritten; or it cannot be
            written, and is as it was.
        ModelError: The state of the model is not all tensors with values.

    Example:
        >>> import tempfile, torch, inc_torch.export
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     inc_torch.export.save(model, directory)
        ...     copy = inc_torch.export.load(directory, model=torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> torch.equal(copy[0].weight, model[0].weight)
        True
    """
    complete = assembled(model)
    write_once(directory, lambda: _write(complete, Path(directory), report))


def _write(model: nn.Module, target: Path, report: CompressionReport | None) -> None:
    _refuse_to_overwrite(target)
    share_equal_codes(model)
    tensors, aliases = plain_state(model)
    measured = measured_report(model, report if report is not None else attached_report(model))
    made_directory(target)
    description = {
        "format": f"{FORMAT}/{VERSION}",
        "class": type(model).__qualname__,
        "modules": describe_int8(model),
        "graph": describe_graph(model),
        "bfloat16": precision.describe_bfloat16(model),
        "aliases": aliases,
        "report": measured.to_dict(),
    }
    with replacing(target, _earlier(target)):
        write_tensors(target / WEIGHTS, tensors)
        facts = {"file": WEIGHTS, **file_facts(target / WEIGHTS)}
        write_json(target / ARTIFACT, {**description, "weights": facts, "ipex": _write_program(model, target)})


def _earlier(target: Path) -> dict[str, object]:
    """The files that go with a description, by name, and what that of an earlier save says of them."""
    from inc_torch.ipex import SUMMARY

    try:
        data = read_description(target)
    except ArtifactError:  # what is there cannot be loaded now, so nothing has to stay loadable
        return {WEIGHTS: None, SUMMARY: None}
    return {WEIGHTS: data["weights"], SUMMARY: data["ipex"].get("summary")}


def _write_program(model: nn.Module, target: Path) -> dict[str, Any]:
    """What there is to write of a model that runs on Intel's extension, whose forward is a program."""
    if "forward" not in model.__dict__:
        return {}
    from inc_torch.export._extension import write_summary

    return write_summary(model, target)


def _runs_program(model: nn.Module, source: Path, description: Mapping[str, Any]) -> bool:
    """Let a loaded model run on Intel's extension, if it did when it was saved and can here."""
    if not description:
        return False
    from inc_torch.export._extension import rerun_on_extension

    return rerun_on_extension(model, source, description)


def load(directory: str | os.PathLike[str], model: ModelT) -> ModelT:
    """Load what `save` (and ``manager.save``) wrote into ``model``, in place.

    Int8 modules, and modules that compute in bfloat16, are rebuilt where the saved model had them, every tensor is
    compared by name, shape and dtype, and the report is measured again from the loaded weights. The report is then
    found at ``model.report()`` of a managed model, and in ``model.__dict__["_inc_torch_report"]`` of any.

    Args:
        directory: The directory that was saved to.
        model: The float model as the user's code builds it, with any weights, or on the meta device.

    Returns:
        ``model`` itself, in eval mode.

    Raises:
        ArtifactError: The directory is missing, damaged, foreign or newer, or ``model`` is not the saved architecture.

    Example:
        >>> import torch, inc_torch.export
        >>> inc_torch.export.load("no/such/place", model=torch.nn.Linear(2, 2))
        Traceback (most recent call last):
            ...
        inc_torch.core.errors.ArtifactError: 'no/such/place' does not exist: expected a directory ...
    """
    source = Path(directory)
    data = read_description(source)
    tensors = _read_weights(source, data)
    where = os.fspath(source / ARTIFACT)
    if data["modules"] != describe_int8(model):
        rebuild_int8(model, data["modules"], data["graph"])
    precision.rebuild_bfloat16(model, data["bfloat16"])
    _fill(model, tensors, data, where)
    stored = read_report(data["report"], where)
    attach_report(model, prove_report(model, stored, where))
    model.eval()
    if not _runs_program(model, source, data["ipex"]):
        run_graph_fused(model)
        inference.fuse_half_precision(model)
    return model


def _refuse_to_overwrite(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        message = f"{os.fspath(directory)!r} is a file: expected a directory to save into. Give another path."
        raise ArtifactError(message)
    if (directory / HUB_CONFIG).exists() and weight_files(directory) and not (directory / ARTIFACT).exists():
        message = (
            f"{os.fspath(directory)!r} holds a Hugging Face model ({HUB_CONFIG} and weights), whose weights would be "
            "overwritten. Save into another directory, or write that layout with save_for_huggingface_upstream."
        )
        raise ArtifactError(message)


def read_description(directory: Path) -> dict[str, Any]:
    """Read ``compression.json``, or say what the directory is instead."""
    if not directory.is_dir():
        raise ArtifactError(_no_directory(directory))
    if not (directory / ARTIFACT).is_file():
        raise ArtifactError(_foreign(directory))
    path = directory / ARTIFACT
    data = read_json(path, SAVE_AGAIN)
    name, _, version = str(data.get("format", "")).partition("/")
    if name != FORMAT or not version.isdecimal():
        message = (
            f"{os.fspath(path)!r} was not written by inc_torch: got format {data.get('format')!r}, "
            f"expected '{FORMAT}/{VERSION}'. {SAVE_AGAIN}"
        )
        raise ArtifactError(message)
    if int(version) > VERSION:
        message = (
            f"{os.fspath(path)!r} was written by a newer inc_torch: got format {data['format']!r}, expected "
            f"'{FORMAT}/{VERSION}' or older. Upgrade: pip install -U inc_torch."
        )
        raise ArtifactError(message)
    for key in ("bfloat16", "graph", "ipex"):  # what was saved before there were such modules lacks them
        data.setdefault(key, {})
    for key, kind in (*((key, dict) for key in DICTIONARIES), ("class", str)):
        if not isinstance(data.get(key), kind):
            message = (
                f"{os.fspath(path)!r} is damaged: {key!r} is {data.get(key)!r}, expected {kind.__name__}. {SAVE_AGAIN}"
            )
            raise ArtifactError(message)
    check_tables(data, {"modules": dict, "aliases": str, "bfloat16": str}, repr(os.fspath(path)), SAVE_AGAIN)
    return data


def _no_directory(directory: Path) -> str:
    if directory.exists():
        return (
            f"{os.fspath(directory)!r} is a file: expected the directory that manager.save(directory) wrote. Give the "
            f"directory; a file of pickled objects is never opened."
        )
    return (
        f"{os.fspath(directory)!r} does not exist: expected a directory that manager.save(directory) wrote. "
        f"Check the path (it is seen from {os.fspath(Path.cwd())!r})."
    )


def _foreign(directory: Path) -> str:
    """What a directory without ``compression.json`` is, and what opens it."""
    start = f"{os.fspath(directory)!r} has no {ARTIFACT}, which inc_torch writes beside the weights"
    if (directory / HUB_CONFIG).is_file():
        return (
            f"{start}; it is a Hugging Face directory ({HUB_CONFIG}). Open it with AutoModelFor….from_pretrained or "
            "inc_torch.utils.load_huggingface.OptimizedModel.from_pretrained."
        )
    if weight_files(directory):
        return f"{start}: the save was cut short, or the weights are another program's. {SAVE_AGAIN}"
    if pickled := pickled_files(directory):
        return (
            f"{start}; it holds pickled objects ({', '.join(map(repr, pickled))}), which are not opened, as opening "
            "them can run code. A quantized model that Intel Neural Compressor saved (best_model.pt) is opened by "
            "inc_torch.utils.pytorch.load(directory, model), which reads nothing but tensors and plain values."
        )
    return f"{start}, and no weights. Check the path, or save with manager.save(directory)."


def _read_weights(directory: Path, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read the tensors after making sure that the file is the one that was saved; add the second names."""
    path = as_noted(directory / WEIGHTS, data["weights"])
    if not path.is_file():
        message = (
            f"{os.fspath(path)!r} is missing, though {ARTIFACT} is there. Copy the whole directory, or save again."
        )
        raise ArtifactError(message)
    facts = file_facts(path)
    for key in ("bytes", "sha256"):
        if facts[key] != data["weights"].get(key):
            message = (
                f"{os.fspath(path)!r} is not the file that was saved: got {key} {facts[key]!r}, {ARTIFACT} says "
                f"{data['weights'].get(key)!r}. A copy or a save was cut short. Copy the directory again. {SAVE_AGAIN}"
            )
            raise ArtifactError(message)
    tensors = read_tensors(path, SAVE_AGAIN)
    for name, original in data["aliases"].items():
        if original not in tensors:
            message = f"{os.fspath(path)!r} lacks {original!r}, to which {name!r} is tied. {SAVE_AGAIN}"
            raise ArtifactError(message)
        tensors[name] = tensors[original]
    return tensors


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], data: Mapping[str, Any], where: str) -> None:
    """Load ``tensors`` strictly; tensors on the meta device are replaced, others are written in place."""
    expected = model.state_dict(keep_vars=True)
    if difference := _first_difference(tensors, expected):
        message = (
            f"{type(model).__name__} is not the model that was saved in {where!r} (a {data['class']}): {difference} "
            "Build the model exactly as it was built for training, in float32, before loading; cast it afterwards."
        )
        raise ArtifactError(message)
    groups = _groups(expected)
    for second, first in groups.items():
        if not torch.equal(tensors[second], tensors[first]):
            message = (
                f"{type(model).__name__} ties {second!r} to {first!r}, but the two differ in {where!r}, where they "
                "were not tied. Build the model without tying them."
            )
            raise ArtifactError(message)
    on_meta = any(tensor.is_meta for tensor in expected.values())
    model.load_state_dict(tensors, strict=True, assign=on_meta)
    if on_meta:
        _tie(model, groups)
    _tie_codes(model, data["aliases"])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            message = (
                f"{name!r} of {type(model).__name__} is on the meta device and is not saved, as it is a non-persistent "
                "buffer. Build the model on the CPU, without torch.device('meta')."
            )
            raise ArtifactError(message)


def _first_difference(saved: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """The first tensor in which two states differ, as a sentence; empty if names, shapes and dtypes agree."""
    for name, tensor in expected.items():
        if name not in saved:
            return f"it has {name!r} of shape {tuple(tensor.shape)}, which was not saved.{did_you_mean(name, saved)}"
        for field in ("shape", "dtype"):
            got, want = getattr(tensor, field), getattr(saved[name], field)
            if got != want:
                show = tuple if field == "shape" else str
                return f"{name!r} has {field} {show(got)}, the saved one {show(want)}."
    extra = sorted(saved.keys() - expected.keys())
    return f"it lacks {extra[0]!r}, which was saved." if extra else ""


def _groups(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Second name -> first name of the tensors of a model that are tied; on the meta device one object is the sign."""
    first: dict[int, str] = {}
    same = {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}
    return {**{name: other for name, other in same.items() if name != other}, **tied_groups(state)}


def _tie(model: nn.Module, groups: Mapping[str, str]) -> None:
    for second, first in groups.items():
        owner, leaf = split_name(first)
        original = getattr(model.get_submodule(owner), leaf)
        owner, leaf = split_name(second)
        setattr(model.get_submodule(owner), leaf, original)


def _tie_codes(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Let tied int8 modules keep one tensor of codes again, as they did when they were saved."""
    modules = int8_modules(model)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for second, first in aliases.items():
        names[first].append(second)
    for first, seconds in names.items():
        owner, leaf = split_name(first)
        for second in seconds:
            other, other_leaf = split_name(second)
            if owner in modules and other in modules:
                modules[other]._buffers[other_leaf] = modules[owner]._buffers[leaf]
