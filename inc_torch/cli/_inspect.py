"""``inc-torch inspect``: what a saved directory holds."""

from __future__ import annotations

import json as json_format
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inc_torch.cli._errors import FAILED, told_briefly
from inc_torch.cli._output import write_text
from inc_torch.model import SavedModel, inspect_saved

__all__ = ["inspect"]

_KILO = 1000
_VERDICTS = {True: "holds", False: "DAMAGED", None: "unknown"}


def inspect(
    directory: Annotated[
        Path,
        typer.Argument(
            help="A saved directory: of inc_torch, of Hugging Face, of GPTQ, or of Intel Neural Compressor 2.X.",
            show_default=False,
        ),
    ],
    json: Annotated[
        Path | None, typer.Option(help="Write it as JSON to this file instead; - prints it.", metavar="FILE")
    ] = None,
) -> None:
    """Show what a saved directory holds: format, layers, sizes, whether it is whole, and how to open it in Python.

    Nothing is loaded, and no code of the directory runs. The exit code is 1 if the weights are not what was saved.

    Example: inc-torch inspect minilm-int8
    """
    with told_briefly():
        found = inspect_saved(directory)
        if json is None:
            _show(found)
        else:
            write_text(json, json_format.dumps(found.to_dict(), indent=2))
    if not found.is_sound:
        raise typer.Exit(FAILED)


def _show(found: SavedModel) -> None:
    grid = Table(box=None, show_header=False, pad_edge=False, title=found.path, title_justify="left")
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _lines(found):
        grid.add_row(name, Text(text))
    console = Console()
    console.print(grid)
    console.print(Text(f"\nTo open it:\n\n{found.opened_by}"), soft_wrap=True)


def _lines(found: SavedModel) -> Iterator[tuple[str, str]]:
    yield "format", found.kind
    if found.model_class is not None:
        yield "class", found.model_class
    for name, version in found.versions.items():
        yield f"version: {name}" if name != "format" else "format version", version
    for scheme, count in sorted(Counter(found.schemes.values()).items()):
        example = next(name for name, other in found.schemes.items() if other == scheme)
        yield f"layers {scheme}", f"{count}, such as {example or '(root)'}"
    if found.kind != "Hugging Face" and not found.schemes and found.report is not None:
        yield "layers", "none is quantized"
    if found.sparsity is not None:
        yield "zeros in weights", f"{found.sparsity:.1%}"
    for dtype, size in sorted(found.bytes_by_dtype.items(), key=lambda item: -item[1]):
        yield f"tensors {dtype}", _size(size)
    yield "files", f"{_size(sum(found.files.values()))} in {len(found.files)}: {', '.join(found.files)}"
    for check in found.checks:
        yield f"check {check.what}", f"{_VERDICTS[check.is_right]}: {check.detail}"


def _size(size: int) -> str:
    """A number of bytes to read: 5,120 and 5.1 kB.

    Example:
        >>> _size(999), _size(5120), _size(22_700_000)
        ('999 bytes', '5.1 kB', '22.7 MB')
    """
    if size < _KILO:
        return f"{size} bytes"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= _KILO
        if value < _KILO or unit == "GB":
            break
    return f"{value:,.1f} {unit}"
