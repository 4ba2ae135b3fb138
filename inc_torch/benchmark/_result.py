"""What a benchmark has measured: instances, models, and two models side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from inc_torch.benchmark import _result_view as view
from inc_torch.benchmark._picture import as_svg
from inc_torch.core.files import made_directory, write_text

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["BenchmarkResult", "InstanceResult", "ModelResult"]

FORMAT: Final = "inc_torch benchmark result"
VERSION: Final = 1
PERCENTILES: Final = (50, 90, 99)


@final
@dataclass(frozen=True, slots=True)
class InstanceResult:
    """What one process has measured.

    Attributes:
        index: From 0.
        cpus: Hardware threads that it ran on, as the kernel said; empty where nothing was bound.
        threads: Of an operator.
        batch_size: Samples in the first batch.
        seconds: Of each iteration after the warm-up.
        samples: In all these iterations.
        memory: Bytes at the peak: the tensors of the model, and what running it added. None where that is not told.
        failure: What went wrong in a line, then the trace; there are no numbers then.

    Example:
        >>> instance = InstanceResult(0, (0, 1), 2, 4, (0.010, 0.012, 0.030), 12, None)
        >>> round(instance.percentile(50), 6), round(instance.latency, 6), round(instance.throughput, 3)
        (12.0, 4.333333, 230.769)
    """

    index: int
    cpus: tuple[int, ...] = ()
    threads: int = 0
    batch_size: int = 0
    seconds: tuple[float, ...] = ()
    samples: int = 0
    memory: int | None = None
    failure: str | None = None

    def percentile(self, share: float) -> float:
        """Milliseconds that ``share`` percent of the batches took at most, as `numpy.percentile` has it."""
        return 1000 * float(np.percentile(self.seconds, share))

    @property
    def latency(self) -> float:
        """Mean milliseconds of one sample; what INC calls latency."""
        return 1000 * sum(self.seconds) / self.samples

    @property
    def throughput(self) -> float:
        """Samples in a second."""
        return self.samples / sum(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = {"index": self.index, "failure": self.failure}
        if self.failure is not None:
            return plain
        return plain | {
            "cpus": list(self.cpus),
            "threads": self.threads,
            "batch_size": self.batch_size,
            "samples": self.samples,
            "latency_ms": self.latency,
            **{f"p{share}_ms": self.percentile(share) for share in PERCENTILES},
            "throughput": self.throughput,
            "memory": self.memory,
            "seconds": list(self.seconds),
        }


@final
@dataclass(frozen=True, slots=True)
class ModelResult:
    """What all instances of one model have measured.

    Attributes:
        name: Of the model.
        instances: In order; at least one did not fail.
        size: Bytes of all tensors.
        kernels: Calls of each kernel in one forward, see `inc_torch.benchmark`.
        modules: How many modules with weights there are of each class.
        inputs: Types and shapes of the first batch.
        accuracy: Of the metric; None if none was given.
        notes: What kept the model from being faster, and what was put right.
    """

    name: str
    instances: tuple[InstanceResult, ...]
    size: int
    kernels: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, int] = field(default_factory=dict)
    inputs: str = ""
    accuracy: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def finished(self) -> tuple[InstanceResult, ...]:
        """The instances that did not fail."""
        return tuple(instance for instance in self.instances if instance.failure is None)

    @property
    def seconds(self) -> list[float]:
        """Of the iterations of all instances, one instance after the other."""
        return [seconds for instance in self.finished for seconds in instance.seconds]

    def percentile(self, share: float) -> float:
        """Milliseconds that ``share`` percent of the batches of all instances took at most."""
        return 1000 * float(np.percentile(self.seconds, share))

    @property
    def latency(self) -> float:
        """Mean milliseconds of one sample, the mean over instances."""
        return fmean(instance.latency for instance in self.finished)

    @property
    def throughput(self) -> float:
        """Samples in a second, the sum over instances."""
        return sum(instance.throughput for instance in self.finished)

    @property
    def memory(self) -> int | None:
        """Bytes at the peak in the instance that took most; None where that is not told."""
        return max((instance.memory for instance in self.finished if instance.memory is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "inputs": self.inputs,
            "latency_ms": self.latency,
            **{f"p{share}_ms": self.percentile(share) for share in PERCENTILES},
            "throughput": self.throughput,
            "memory": self.memory,
            "size": self.size,
            "accuracy": self.accuracy,
            "kernels": dict(self.kernels),
            "modules": dict(self.modules),
            "notes": list(self.notes),
            "instances": [instance.to_dict() for instance in self.instances],
        }


@final
@dataclass(frozen=True, slots=True)
class BenchmarkResult(Mapping[str, Any]):
    """What `inc_torch.benchmark.fit` returns; also a mapping with INC's key ``"performance"``.

    Attributes:
        model: The model that was measured.
        compared: The one beside it; None if there is none.
        profile: With ``diagnosis`` a row for each operator, the slowest first.

    Example:
        >>> int8 = ModelResult("int8", (InstanceResult(0, (0,), 1, 2, (0.1, 0.3), 4),), 100)
        >>> float32 = ModelResult("float32", (InstanceResult(0, (0,), 1, 2, (0.4, 0.4), 4),), 400)
        >>> result = BenchmarkResult(int8, float32)
        >>> accuracy, batch_size, seconds = result["performance"]
        >>> accuracy, batch_size, seconds, result.speedup
        (None, 2, [0.1, 0.3], 2.0)
    """

    model: ModelResult
    compared: ModelResult | None = None
    profile: tuple[Mapping[str, Any], ...] = ()

    @property
    def speedup(self) -> float | None:
        """Throughput over that of the compared model."""
        return None if self.compared is None else self.model.throughput / self.compared.throughput

    @property
    def models(self) -> tuple[ModelResult, ...]:
        """The one or two that were measured."""
        return (self.model,) if self.compared is None else (self.model, self.compared)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401  by key
        """INC's ``"performance"``: accuracy, batch size and seconds; any other key is one of `to_dict`'s model."""
        if key == "performance":
            return self.model.accuracy, self.model.finished[0].batch_size, self.model.seconds
        return self.model.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        yield "performance"
        yield from self.model.to_dict()

    def __len__(self) -> int:
        return 1 + len(self.model.to_dict())

    # ------------------------------------------------------------------------------------------- files

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values, for JSON."""
        return {
            "format": f"{FORMAT}/{VERSION}",
            "model": self.model.to_dict(),
            "compared": None if self.compared is None else self.compared.to_dict(),
            "speedup": self.speedup,
            "profile": [dict(row) for row in self.profile],
        }

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON."""
        _write(path, self.to_json())

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a row for each instance of each model, for a spreadsheet or a data frame."""
        _write(path, view.as_csv(self))

    def save_svg(self, path: str | os.PathLike[str]) -> None:
        """Draw the time of every batch, throughput and memory, as a picture for a browser or a page."""
        _write(path, as_svg(self))

    # ------------------------------------------------------------------------------------------- for people

    def print(self) -> None:
        """Print the tables, folded to the width of the screen."""
        from rich.console import Console

        Console().print(self)

    def __repr__(self) -> str:
        names = ", ".join(f"{model.name}: {model.throughput:.4g} samples/s" for model in self.models)
        return f"BenchmarkResult({names})"

    def __str__(self) -> str:
        """The tables in 80 columns of plain text."""
        return view.as_text(self)

    def __rich__(self) -> Group:
        """The same for ``rich``'s ``print``."""
        return view.as_rich(self)


def _write(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole: a write that is cut short leaves the old one."""
    target = Path(path)
    made_directory(target.parent)
    write_text(target, text)
