"""A progress bar where somebody looks."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import track

from common.data import Batch


def progress(batches: Iterable[Batch], name: str, steps: int, console: Console) -> Iterable[Batch]:
    """The same batches, with a bar on a terminal and nothing elsewhere."""
    return track(batches, name, steps, console=console, disable=not console.is_terminal)
