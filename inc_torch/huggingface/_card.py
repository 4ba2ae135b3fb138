"""The model card: what was compressed, what it gained, and how to load it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from torch import nn

from inc_torch import precision
from inc_torch.core.files import write_text
from inc_torch.core.report import CompressionReport, ModuleReport
from inc_torch.export._proof import CODE_BITS
from inc_torch.huggingface._layout import CARD
from inc_torch.quantizers import code_name

__all__ = ["CARD", "write_card"]

MARK = "<!-- Written by inc_torch. Remove this line to keep the page when the model is saved again. -->"
MEGA = 1e6
WITHOUT_IMPORT = (
    "Without `import inc_torch` transformers does not know the quantization type `inc_torch`, and refuses to load the "
    "model for weights of mismatched sizes."
)
BFLOAT16_WITHOUT_IMPORT = (
    "Without `import inc_torch` transformers does not know the quantization type `inc_torch`: the modules that are to "
    "compute in bfloat16 then compute as the others do, with rounded weights."
)
WITH_GPTQ = (
    "The weights are stored as GPTQ stores them: transformers opens them with the packages optimum and gptqmodel, and "
    "`inc_torch.huggingface.OptimizedModel.from_pretrained` without these."
)


def write_card(directory: Path, model: nn.Module, report: CompressionReport, *, needs_import: bool = True) -> None:
    """Write ``README.md``, unless a page is there that somebody wrote by hand.

    Args:
        directory: Where it is saved.
        model: What was saved.
        report: Measured from the saved weights.
        needs_import: Whether transformers opens it with inc_torch alone; else it was saved in the form of GPTQ.
    """
    path = directory / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8"):
        return
    write_text(path, card(os.fspath(directory), model, report, needs_import=needs_import))


def card(directory: str, model: nn.Module, report: CompressionReport, *, needs_import: bool = True) -> str:
    """The text of the model card.

    Args:
        directory: Where it is saved; only the last part is shown.
        model: What was saved.
        report: Measured from the saved weights.
        needs_import: As in `write_card`.
    """
    quantized = [row for row in report.modules if row.bits <= CODE_BITS]
    bfloat16 = precision.describe_bfloat16(model)
    pruned = [row for row in report.modules if row.asked_sparsity is not None]
    tags = [
        *("inc_torch", "compression"),
        *_code_names(report),
        *(["bfloat16"] if bfloat16 else []),
        *([] if needs_import else ["gptq"]),
        *(["pruning", "sparse"] if pruned else []),
    ]
    needed = needs_import and bool(quantized or bfloat16)
    note = (WITHOUT_IMPORT if quantized else BFLOAT16_WITHOUT_IMPORT) if needed else None
    note = note if needs_import else WITH_GPTQ
    architecture = type(model).__name__
    name = Path(directory).name or "model"
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
        MARK,
        "",
        f"# {name}",
        "",
        f"`{architecture}`, compressed while it was trained.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in _summary(report, bfloat16).items()),
        "",
        "## Load it",
        "",
        "```python",
        *(["import inc_torch  # lets transformers open compressed models"] if needed else []),
        f"from transformers import {architecture}",
        "",
        f'model = {architecture}.from_pretrained("{name}")  # or AutoModelFor….from_pretrained',
        "```",
        *([] if note is None else ["", note]),
        "",
        "## Module by module",
        "",
        "Zeros and bits are measured from the stored weights.",
        "",
        report.markdown(),
        "",
    ]
    return "\n".join(lines)


def _summary(report: CompressionReport, bfloat16: Collection[str]) -> dict[str, str]:
    asked = sorted({row.asked_sparsity for row in report.modules if row.asked_sparsity is not None})
    patterns = sorted({row.pattern for row in report.modules if row.pattern is not None})
    summary = {"size of the tensors": f"{report.size_bytes / MEGA:.1f} MB"}
    if asked:
        summary["sparsity asked"] = f"{', '.join(f'{value:.1%}' for value in asked)} ({', '.join(patterns)})"
        summary["sparsity reached"] = f"{report.sparsity:.2%} of the pruned weights"
    names = Counter(map(_code_name, report.modules))
    for name in _code_names(report) or [f"int{CODE_BITS}"]:
        summary[f"{name} modules"] = f"{names[name]} of {len(report.modules)}"
    if bfloat16:
        summary["bfloat16 modules"] = f"{len(bfloat16)} of {len(report.modules)}"
    return summary


def _code_names(report: CompressionReport) -> list[str]:
    """What to call the codes that weights are stored in."""
    return sorted({name for row in report.modules if (name := _code_name(row))}, key=str.lower)


def _code_name(row: ModuleReport) -> str | None:
    return code_name(row.scheme, row.bits) if row.bits <= CODE_BITS else None
