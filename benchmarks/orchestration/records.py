"""Which training a result of this study belongs to, and what is measured of it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from torch import nn

from benchmarks.tasks.records import Record
from inc_torch import CompressionReport
from inc_torch.export import save


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        task: Name of the model and the data.
        phases: Steps and learning rates.
        seed: Of the head or all weights, and of the order of the data.
        arm: Its shots.
        sparsity: The share of blocks that was to go.
    """

    task: str
    phases: str
    seed: int
    arm: str
    sparsity: float


@dataclass(frozen=True)
class Outcome(Record):
    """What came out of an arm.

    Attributes:
        size: Bytes of the file of weights.
        packed: Bytes of the same, compressed by zlib.
    """

    RUN: ClassVar[type[Run]] = Run

    size: int
    packed: int


def zeros_of(report: CompressionReport) -> float:
    """The share of zeros in all linear layers and convolutions, pruned or not; embeddings do not count."""
    rows = [row for row in report.modules if "Embedding" not in row.kind]
    return sum(row.zeros for row in rows) / sum(row.numel for row in rows)


def bytes_of(model: nn.Module) -> tuple[int, int]:
    """How long the file of weights is, as it is and compressed."""
    with TemporaryDirectory() as folder:
        save(model, folder)
        content = (Path(folder) / "model.safetensors").read_bytes()
    return len(content), len(zlib.compress(content))
