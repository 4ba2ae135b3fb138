"""How the result of a benchmark is shown: tables of rich, the same as plain text, CSV, and the lines of INC."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from inc_torch.benchmark._dispatch import is_low_precision

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from inc_torch.benchmark._result import BenchmarkResult, InstanceResult, ModelResult

__all__ = ["as_csv", "as_rich", "as_text", "inc_lines", "inc_summary"]

_WIDTH: Final = 80
_MOST_KERNELS: Final = 12
_MEGABYTE: Final = 1e6
_CSV: Final = (
    *("model", "instance", "cpus", "threads", "batch_size", "batches", "samples"),
    *("latency_ms", "p50_ms", "p90_ms", "p99_ms", "throughput", "memory", "size", "accuracy", "failure"),
)


def inc_lines(instance: InstanceResult) -> list[str]:
    """What INC's instances print, in words that scripts look for.

    Example:
        >>> from inc_torch.benchmark import InstanceResult
        >>> inc_lines(InstanceResult(0, batch_size=4, seconds=(0.5, 0.5), samples=8))
        ['Batch size = 4', 'Latency: 125.000 ms', 'Throughput: 8.000 images/sec']
    """
    return [
        f"Batch size = {instance.batch_size}",
        f"Latency: {instance.latency:.3f} ms",
        f"Throughput: {instance.throughput:.3f} images/sec",
    ]


def inc_summary(latency: float, throughput: float) -> list[str]:
    r"""The table that INC prints of all instances together.

    Args:
        latency: Seconds of a sample, the mean over instances.
        throughput: Samples in a second, the sum over instances.

    Example:
        >>> print("\n".join(inc_summary(0.125, 16.0)))
        +------------------------------------------------------+
        |        **Multiple Instance Benchmark Summary**       |
        +---------------------------------------+--------------+
        | Items                                 | Result       |
        +---------------------------------------+--------------+
        | Latency average [second/sample]       | 0.125000     |
        | Throughput sum [samples/second]       | 16.000       |
        +---------------------------------------+--------------+
    """
    rule = f"+{'-' * 39}+{'-' * 14}+"
    rows = [
        ("Items", "Result"),
        ("Latency average [second/sample]", f"{latency:.6f}"),
        ("Throughput sum [samples/second]", f"{throughput:.3f}"),
    ]
    lines = [f"| {left:<37} | {right:<12} |" for left, right in rows]
    title = f"|{'**Multiple Instance Benchmark Summary**':^54}|"
    return [f"+{'-' * 54}+", title, rule, lines[0], rule, *lines[1:], rule]


def as_csv(result: BenchmarkResult) -> str:
    """A line for each instance of each model, after a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for model in result.models:
        for instance in model.instances:
            plain = instance.to_dict()
            values: dict[str, object] = plain | {
                "model": model.name,
                "instance": instance.index,
                "cpus": " ".join(map(str, instance.cpus)),
                "batches": len(instance.seconds) or None,
                "size": model.size,
                "accuracy": model.accuracy,
            }
            writer.writerow([values.get(name) for name in _CSV])
    return text.getvalue()


def as_text(result: BenchmarkResult) -> str:
    """The tables in 80 columns."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=_WIDTH, color_system=None, legacy_windows=False).print(as_rich(result))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def as_rich(result: BenchmarkResult) -> Group:
    """Models side by side, their instances, their kernels, and what is to be said of them."""
    # On first use: `import inc_torch` must not load rich.
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = [_side_by_side(result)]
    if any(len(model.instances) > 1 for model in result.models):
        parts += [Text(), _instances(result)]
    if any(model.kernels for model in result.models):
        parts += [Text(), _kernels(result)]
    notes: list[Text] = []
    for model in result.models:
        owner = "" if result.compared is None else f"{model.name}: "
        failures = [(one.index, one.failure) for one in model.instances if one.failure is not None]
        notes += [Text(f"{owner}instance {index}: {story.splitlines()[0]}", style="red") for index, story in failures]
        notes += [Text(f"{owner}{note}", style="yellow") for note in model.notes]
        if model.modules:
            counted = ", ".join(f"{count} {name}" for name, count in model.modules.items())
            notes.append(Text(f"{owner}modules with weights: {counted}", style="dim"))
        if model.inputs:
            notes.append(Text(f"{owner}input: {model.inputs}", style="dim"))
    return Group(*parts, Text(), *notes)


def _table(title: str, first: str, others: list[str]) -> Table:
    from rich.table import Table

    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    grid.add_column(first, overflow="fold")
    for name in others:
        grid.add_column(name, justify="right", overflow="fold")
    return grid


def _side_by_side(result: BenchmarkResult) -> Table:
    from rich.text import Text

    names = [model.name for model in result.models]
    grid = _table("Benchmark", "", [*names, *(["gain"] if result.compared else [])])
    for label, value, shown, is_less_better in _ROWS:
        values = [value(model) for model in result.models]
        if all(one is None for one in values):
            continue
        cells = ["-" if one is None else shown(one) for one in values]
        if result.compared is not None:
            cells.append(_gain(values[0], values[1], is_less_better=is_less_better))
        grid.add_row(label, *map(Text, cells))
    return grid


def _gain(own: float | None, other: float | None, *, is_less_better: bool | None) -> str:
    """By what factor it is better, or the difference where factors say nothing."""
    if own is None or other is None:
        return "-"
    if is_less_better is None:
        return f"{own - other:+.4f}"
    above, below = (other, own) if is_less_better else (own, other)
    return f"{above / below:.2f}x" if below else "-"


def _number(value: float) -> str:
    return f"{value:,.3f}"


_ROWS: Final[tuple[tuple[str, Callable[[ModelResult], float | None], Callable[[float], str], bool | None], ...]] = (
    ("ms a batch, p50", lambda model: model.percentile(50), _number, True),
    ("ms a batch, p90", lambda model: model.percentile(90), _number, True),
    ("ms a batch, p99", lambda model: model.percentile(99), _number, True),
    ("ms a sample, mean", lambda model: model.latency, _number, True),
    ("samples a second", lambda model: model.throughput, lambda value: f"{value:,.1f}", False),
    (
        "MB of memory, peak",
        lambda model: None if model.memory is None else model.memory / _MEGABYTE,
        lambda value: f"{value:,.2f}",
        True,
    ),
    ("MB of tensors", lambda model: model.size / _MEGABYTE, lambda value: f"{value:,.2f}", True),
    ("accuracy", lambda model: model.accuracy, lambda value: f"{value:.4f}", None),
)


def _instances(result: BenchmarkResult) -> Table:
    from rich.text import Text

    grid = _table("Instances", "model", ["", "cores", "batches", "p50 ms", "p99 ms", "samples/s"])
    for model in result.models:
        for instance in model.instances:
            if instance.failure is not None:
                grid.add_row(Text(model.name), str(instance.index), Text("failed"), "", "", "", "")
                continue
            cells = (
                _ranges(instance.cpus),
                str(len(instance.seconds)),
                _number(instance.percentile(50)),
                _number(instance.percentile(99)),
                f"{instance.throughput:,.1f}",
            )
            grid.add_row(Text(model.name), str(instance.index), *map(Text, cells))
    return grid


def _ranges(cpus: tuple[int, ...]) -> str:
    """Hardware threads in the kernel's short form; a dash where nothing is bound.

    Example:
        >>> _ranges((0, 1, 2, 5))
        '0-2,5'
    """
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts) or "-"


def _kernels(result: BenchmarkResult) -> Table:
    from rich.text import Text

    names = list(dict.fromkeys(name for model in result.models for name in model.kernels))
    grid = _table("Kernels of one forward", "", [*(model.name for model in result.models), "int8"])
    for name in names[:_MOST_KERNELS]:
        counts = [str(model.kernels.get(name, "-")) for model in result.models]
        grid.add_row(Text(name), *counts, "yes" if is_low_precision(name) else "")
    if len(names) > _MOST_KERNELS:
        grid.add_row(Text(f"and {len(names) - _MOST_KERNELS} more, see to_dict()", style="dim"))
    return grid
