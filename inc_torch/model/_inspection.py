"""What a saved directory holds, read from its files: no model is built, and nothing that is read can run code."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

import torch

from inc_torch.core.errors import ArtifactError
from inc_torch.core.report import CompressionReport
from inc_torch.export._artifact import SAVE_AGAIN, read_description
from inc_torch.export._files import (
    ARTIFACT,
    HUB_CONFIG,
    WEIGHTS,
    as_noted,
    check_tables,
    file_facts,
    read_json,
    tensor_names,
    weight_files,
)
from inc_torch.export._proof import read_report
from inc_torch.export._tensors import checksum_of
from inc_torch.export.inc import find_file, find_summary
from inc_torch.export.inc._pickled import CONFIGURE, read_file
from inc_torch.huggingface._layout import REPORT, TABLES, check_directory
from inc_torch.huggingface._source import Source
from inc_torch.huggingface.registration import QUANT_METHOD

__all__ = ["Check", "SavedModel", "inspect_saved"]

_HEADER_LENGTH: Final = 8
"""A safetensors file begins with the length of its header, in so many bytes."""
_GPTQ: Final = "gptq"
_AS_BUILT: Final = "model= is the float model, as your code builds it"


@final
@dataclass(frozen=True, slots=True)
class Check:
    """Whether the files are what was saved.

    Attributes:
        what: What was looked at.
        is_right: What came of it; None where nothing was noted when the model was saved.
        detail: What is wrong, or how it is known.
    """

    what: str
    is_right: bool | None
    detail: str


@final
@dataclass(frozen=True, slots=True)
class SavedModel:
    """What a directory holds.

    Attributes:
        path: The directory.
        kind: Whose format it is.
        model_class: Name of the class that was saved, as far as it is known.
        opened_by: Lines of Python that open it.
        schemes: How each compressed layer is quantized, by name.
        bytes_by_dtype: Bytes of all tensors of a type.
        files: Bytes of each file.
        versions: Of the format, and of what wrote it, as far as they are known.
        checks: Whether the files are what was saved.
        report: What was measured as it was saved; None if nothing was.
    """

    path: str
    kind: str
    model_class: str | None
    opened_by: str
    schemes: Mapping[str, str] = field(default_factory=dict)
    bytes_by_dtype: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    report: CompressionReport | None = None

    @property
    def is_sound(self) -> bool:
        """Whether no check failed."""
        return all(check.is_right is not False for check in self.checks)

    @property
    def sparsity(self) -> float | None:
        """Share of zeros in all weights of rank 2 and more, as measured when it was saved; None if nothing was."""
        if self.report is None:
            return None
        return sum(row.zeros for row in self.report.modules) / (sum(row.numel for row in self.report.modules) or 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the report itself."""
        plain = {name: dict(getattr(self, name)) for name in ("schemes", "bytes_by_dtype", "files", "versions")}
        checks = [{"what": check.what, "is_right": check.is_right, "detail": check.detail} for check in self.checks]
        return {
            "path": self.path,
            "kind": self.kind,
            "model_class": self.model_class,
            "opened_by": self.opened_by,
            **plain,
            "checks": checks,
            "sparsity": self.sparsity,
        }


def inspect_saved(directory: str | os.PathLike[str]) -> SavedModel:
    """Say what a directory holds: one of inc_torch, of Hugging Face, of GPTQ, or of Intel Neural Compressor 2.X.

    Raises:
        ArtifactError: It holds no model that is known, or its description is damaged. Damaged weights are no error,
            but a `Check` that failed.

    Example:
        >>> import tempfile
        >>> from inc_torch.export import save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(torch.nn.Linear(4, 2), folder)
        ...     found = inspect_saved(folder)
        >>> found.kind, found.model_class, dict(found.bytes_by_dtype), found.is_sound
        ('inc_torch', 'Linear', {'F32': 40}, True)
    """
    path = Path(directory)
    found = _recognised(path)
    files = (
        {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()} if path.is_dir() else {}
    )
    return replace(found, files=files or {path.name: path.stat().st_size})


def _recognised(path: Path) -> SavedModel:
    if (path / HUB_CONFIG).is_file() and weight_files(path):
        return _of_hub(path)
    if (path / ARTIFACT).is_file():
        return _of_ours(path)
    if find_summary(path) is not None or find_file(path) is not None:
        return _of_inc(path)
    where = "" if path.exists() else f" It does not exist (it is seen from {os.fspath(Path.cwd())!r})."
    message = (
        f"{os.fspath(path)!r} holds no model that is known: expected {ARTIFACT} of inc_torch, {HUB_CONFIG} and "
        f"*.safetensors of Hugging Face, or best_model.pt of Intel Neural Compressor.{where}"
    )
    raise ArtifactError(message)


def _of_ours(path: Path) -> SavedModel:
    data = read_description(path)
    return SavedModel(
        path=os.fspath(path),
        kind="inc_torch",
        model_class=data["class"],
        opened_by=f"import inc_torch\n\n# {_AS_BUILT}\nmodel = inc_torch.load({os.fspath(path)!r}, model=...)",
        schemes=_schemes(data["modules"], data["bfloat16"]),
        bytes_by_dtype=_bytes_by_dtype(path),
        versions={"format": data["format"]},
        checks=(_same_file(as_noted(path / WEIGHTS, data["weights"]), data["weights"]),),
        report=read_report(data["report"], os.fspath(path / ARTIFACT)),
    )


def _same_file(path: Path, noted: Mapping[str, Any]) -> Check:
    """Whether the weights are the file that was saved."""
    facts = file_facts(path) if path.is_file() else {}
    wrong = [key for key in ("bytes", "sha256") if facts.get(key) != noted.get(key)]
    if not wrong:
        return Check(path.name, True, f"SHA-256 {facts['sha256'][:12]}… as saved")
    detail = f"{wrong[0]} {facts[wrong[0]]!r}, saved was {noted.get(wrong[0])!r}" if facts else "the file is missing"
    return Check(path.name, False, detail)


def _of_hub(path: Path) -> SavedModel:
    config = read_json(path / HUB_CONFIG, SAVE_AGAIN)
    described = _described(config, path)
    method = described.get("quant_method")
    report = path / REPORT
    versions = {"transformers": config.get("transformers_version"), "format": described.get("version")}
    versions["written by"] = ", ".join((described.get("meta") or {}).get("quantizer") or ()) or None
    return SavedModel(
        path=os.fspath(path),
        kind=_hub_kind(method, report.is_file()),
        model_class=_architecture(config),
        opened_by=_hub_lines(path, method),
        schemes=_hub_schemes(path, described),
        bytes_by_dtype=_bytes_by_dtype(path),
        versions={name: str(version) for name, version in versions.items() if version is not None},
        checks=tuple(_hub_checks(path, described)),
        report=read_report(read_json(report, SAVE_AGAIN), os.fspath(report)) if report.is_file() else None,
    )


def _described(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a configuration says of quantization; empty if nothing."""
    where = repr(os.fspath(path / HUB_CONFIG))
    found: dict[str, Any] = {"quantization_config": config.get("quantization_config") or {}}
    check_tables(found, {"quantization_config": object}, where, SAVE_AGAIN)
    described: dict[str, Any] = found["quantization_config"]
    if described.get("quant_method") == QUANT_METHOD:
        tables = {name: described.get(name) or {} for name in TABLES}
        check_tables(tables, TABLES, where, SAVE_AGAIN)
    return described


def _hub_kind(method: object, has_report: bool) -> str:
    if method is None:
        return f"Hugging Face{', compressed by inc_torch' if has_report else ''}"
    return f"Hugging Face, {'inc_torch' if method == QUANT_METHOD else method}"


def _architecture(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _hub_lines(path: Path, method: object) -> str:
    known = (None, QUANT_METHOD, _GPTQ)
    if method not in known:
        return f"from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained({os.fspath(path)!r})"
    return f"from inc_torch import OptimizedModel\n\nmodel = OptimizedModel.from_pretrained({os.fspath(path)!r})"


def _hub_schemes(path: Path, described: Mapping[str, Any]) -> dict[str, str]:
    if described.get("quant_method") != _GPTQ:
        return _schemes(described.get("modules") or {}, described.get("bfloat16") or {})
    kind = "sym" if described.get("sym", True) else "asym"
    group = described.get("group_size", -1)
    scheme = f"w{described.get('bits')}{'' if group in (None, -1) else f'-g{group}'}-{kind}"
    names = sorted(name for file in weight_files(path) for name in tensor_names(file, SAVE_AGAIN))
    return {name.removesuffix(".qweight"): scheme for name in names if name.endswith(".qweight")}


def _hub_checks(path: Path, described: Mapping[str, Any]) -> list[Check]:
    try:
        check_directory(path)
    except ArtifactError as error:
        return [Check("*.safetensors", False, str(error))]
    noted: Mapping[str, str] = described.get("checksums") or {}
    if not noted:
        return [Check("*.safetensors", None, "the files are whole; no checksum was saved")]
    aliases: Mapping[str, str] = described.get("aliases") or {}
    source = Source(os.fspath(file) for file in weight_files(path))
    wrong = [name for name in noted if _checksum(source, name, aliases) != noted[name]]
    if wrong:
        return [Check("layers", False, f"{len(wrong)} of {len(noted)} layers are not as saved, first {wrong[0]!r}")]
    return [Check("layers", True, f"CRC-32 of {len(noted)} layers as saved")]


def _checksum(source: Source, module: str, aliases: Mapping[str, str]) -> str:
    """That of one module, of its tensors in the files; those that transformers is to stumble over are none of it."""
    prefix = f"{module}." if module else ""
    names = {name.removeprefix(prefix): name for name in source.names() if name.startswith(prefix)}
    names |= {second.removeprefix(prefix): first for second, first in aliases.items() if second.startswith(prefix)}
    if "qweight" in names:
        names.pop("weight", None)
    tensors = {}
    for leaf, name in names.items():
        owner, _, last = name.rpartition(".")
        tensor = source.tensor(owner, last) if "." not in leaf else None
        if tensor is not None:
            tensors[leaf] = tensor
    return checksum_of(tensors)


def _of_inc(path: Path) -> SavedModel:
    file, summary = find_file(path), find_summary(path)
    lines = f"from inc_torch.utils.pytorch import load\n\n# {_AS_BUILT}\nmodel = load({os.fspath(path)!r}, model=...)"
    if file is None or summary is not None:  # in this order `load` of utils.pytorch looks for them
        kind = "Intel Neural Compressor 2.X, backend ipex: ranges and scales without weights"
        return SavedModel(os.fspath(path), kind, None, lines, checks=(_unchecked("best_configure.json"),))
    state, configure = read_file(file)
    sizes: Counter[str] = Counter()
    for name, value in state.items():
        if name != CONFIGURE and isinstance(value, torch.Tensor):
            sizes[str(value.dtype).removeprefix("torch.")] += value.numel() * value.element_size()
    return SavedModel(
        path=os.fspath(path),
        kind="Intel Neural Compressor 2.X",
        model_class=None,
        opened_by=lines,
        bytes_by_dtype=dict(sizes),
        versions={} if "approach" not in configure else {"approach": str(configure["approach"])},
        checks=(_unchecked(file.name),),
    )


def _unchecked(name: str) -> Check:
    return Check(name, None, "no checksum was saved")


def _schemes(modules: Mapping[str, Mapping[str, Any]], in_bfloat16: Mapping[str, str]) -> dict[str, str]:
    quantized = {name: str(entry.get("scheme")) for name, entry in modules.items()}
    return quantized | {name: "bfloat16" for name in in_bfloat16 if name not in quantized}


def _bytes_by_dtype(path: Path) -> dict[str, int]:
    """Bytes of the tensors of each type, by the headers of the safetensors files."""
    sizes: Counter[str] = Counter()
    for file in weight_files(path):
        for entry in _header(file).values():
            begin, end = entry["data_offsets"]
            sizes[entry["dtype"]] += end - begin
    return dict(sizes)


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; empty if the file is damaged, which a check tells."""
    try:
        tensor_names(path, SAVE_AGAIN)
    except ArtifactError:
        return {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header
