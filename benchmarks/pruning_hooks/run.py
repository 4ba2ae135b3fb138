"""What pruning hooks cost: CPU time per prunable parameter and step, and memory per prunable parameter.

snip_momentum and AdamW, whose momentum is masked too, in several patterns and scopes, with limits for every layer.
First masks change in every step (frequency 1), then never again. One thread, process CPU time, median over the steps of
a kind; the optimizer's own step is not counted. Memory is what lives beside weights, gradients and the optimizer's
state, and what is taken on top of it while a hook runs.

    python benchmarks/pruning_hooks/run.py [--models tiny mini bert] [--cases "global 4x1" ...]
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.training import CompressionManager

# width, feed-forward width, layers: the encoders of small BERTs.
MODELS = {"tiny": (256, 1024, 4), "mini": (384, 1536, 6), "bert": (768, 3072, 12)}
LIMITS = {"min_sparsity_ratio_per_op": 0.3, "max_sparsity_ratio_per_op": 0.95}
CASES = {
    "global 4x1": {"pattern": "4x1", "target_sparsity": 0.8, **LIMITS},
    "local 4x1": {"pattern": "4x1", "target_sparsity": 0.8, "pruning_scope": "local", **LIMITS},
    "global 2:4": {
        "pattern": "2:4",
        "target_sparsity": 0.4,
        "min_sparsity_ratio_per_op": 0.2,
        "max_sparsity_ratio_per_op": 0.48,
    },
    "global 1x1": {"pattern": "1x1", "target_sparsity": 0.8, **LIMITS},
}
UPDATES, OTHERS, WARM_UP = 14, 7, 3
HOOKS = ("on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step")
FLOATS_FOR_BANDWIDTH = 1 << 26


@dataclass(frozen=True)
class Measured:
    """One case on one model: ns and bytes a prunable parameter, ns by hook."""

    parameters: int
    update: dict[str, float]
    other: dict[str, float]
    lasting: float
    peak: float


def build(width: int, inner: int, layers: int) -> nn.Sequential:
    """The Linear layers of a transformer encoder, and a ReLU so that none is taken for a classifier."""
    block = [(width, width)] * 4 + [(width, inner), (inner, width)]
    return nn.Sequential(*(nn.Linear(*shape) for _ in range(layers) for shape in block), nn.ReLU())


def resident(key: str) -> int:
    """Bytes of resident memory: ``VmRSS`` now, ``VmHWM`` the greatest since it was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) * 1024


def memory_of(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of the memory that tensors lie in, by its address."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def lasting_memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that are alive, but for those of the training without pruning."""
    gc.collect()
    alive = memory_of(value for value in gc.get_objects() if type(value) in (torch.Tensor, nn.Parameter))
    states = [value for state in optimizer.state.values() for value in state.values()]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return sum(alive.values()) - sum(memory_of([*model.parameters(), *gradients, *states]).values())


def measure(model_name: str, options: dict[str, object]) -> Measured:
    """Train for some steps with an update each and some without."""
    torch.manual_seed(0)
    model = build(*MODELS[model_name])
    before_all = lasting_memory(model, torch.optim.SGD(model.parameters()))
    manager = prepare_compression(model, WeightPruningConfig(start_step=1, end_step=UPDATES, **options))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    count = sum(weight.numel() for weight in weights)
    kinds = {"update": range(WARM_UP, UPDATES), "other": range(UPDATES + 1, UPDATES + 1 + OTHERS)}
    times: dict[str, dict[str, list[float]]] = {kind: {hook: [] for hook in HOOKS} for kind in kinds}
    peak = 0
    manager.on_train_begin()
    for index in range(UPDATES + 1 + OTHERS):
        # Layers differ in the size of their gradients, so that the limits really bind.
        for rank, weight in enumerate(weights):
            gradient = torch.empty_like(weight) if weight.grad is None else weight.grad
            weight.grad = gradient.normal_(0, 2 ** (rank % 5))
        for hook, call in in_order(manager, optimizer, index):
            Path("/proc/self/clear_refs").write_text("5")
            before, start = resident("VmRSS"), time.process_time()
            call()
            seconds = time.process_time() - start
            kind = next((kind for kind, steps in kinds.items() if index in steps), None)
            if hook in HOOKS and kind:
                times[kind][hook].append(seconds)
                peak = max(peak, resident("VmHWM") - before)
        manager.on_step_end()
    lasting = lasting_memory(model, optimizer) - before_all
    manager.on_train_end()
    reached = manager.report().sparsity
    assert abs(reached - float(str(options["target_sparsity"]))) < 1e-3, reached  # noqa: S101  it has to work
    update, other = (
        {hook: statistics.median(values) * 1e9 / count for hook, values in of_kind.items()}
        for of_kind in times.values()
    )
    return Measured(count, update, other, lasting / count, peak / count)


def in_order(
    manager: CompressionManager, optimizer: torch.optim.Optimizer, index: int
) -> Iterable[tuple[str, Callable[[], object]]]:
    """What is called in a step."""
    return (
        ("on_step_begin", lambda: manager.on_step_begin(index)),
        ("on_before_optimizer_step", manager.on_before_optimizer_step),
        ("optimizer", optimizer.step),
        ("on_after_optimizer_step", manager.on_after_optimizer_step),
    )


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The power of the size with which cost a step grows: the slope of a line through the logarithms."""
    logs = [math.log(size) for size in sizes]
    return statistics.linear_regression(logs, [math.log(c * s) for c, s in zip(costs, sizes, strict=True)]).slope


def seconds_of(call: Callable[[], object]) -> float:
    """The least CPU time of several calls."""
    found = []
    for _ in range(7):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def print_bandwidth(console: Console) -> None:
    """How fast memory is, and what follows from that."""
    first, second = torch.ones(FLOATS_FOR_BANDWIDTH), torch.ones(FLOATS_FOR_BANDWIDTH)
    reads = seconds_of(lambda: torch.dot(first, second)) / FLOATS_FOR_BANDWIDTH
    writes = seconds_of(lambda: first.mul_(1.0)) / FLOATS_FOR_BANDWIDTH
    console.print(
        f"One thread of this machine reads {8e-9 / reads:.1f} GB/s and reads and writes in place {8e-9 / writes:.1f} "
        f"GB/s.\nSo scores, which read weight and gradient, cannot take less than {reads * 1e9:.2f} ns a parameter,"
        f"\nand masking a weight or its momentum not less than {writes * 1e9:.2f}. Masking is done once in every step,"
        "\nthree times if masks change in it: the momentum, and the weights before the forward too."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=100)
    title = "Pruning hooks: ns of CPU and bytes per prunable parameter, in steps with an update and in others"
    table = Table(title=title, box=SIMPLE, padding=0)
    columns = ("case", "model", "million", "begin", "before", "after", "update", "before", "after", "other")
    for column in (*columns, "kept", "peak"):
        is_name = column in ("case", "model")
        table.add_column(column, justify="left" if is_name else "right", no_wrap=True, min_width=None if is_name else 7)
    powers = []
    for case in arguments.cases:
        rows = [measure(name, CASES[case]) for name in arguments.models]
        for name, row in zip(arguments.models, rows, strict=True):
            update, other = [row.update[hook] for hook in HOOKS], [row.other[hook] for hook in HOOKS]
            cells = [*update, sum(update), *other[1:], sum(other), row.lasting, row.peak]
            table.add_row(case, name, f"{row.parameters / 1e6:.1f}", *(f"{cell:.2f}" for cell in cells))
        table.add_section()
        sizes = [row.parameters for row in rows]
        powers.append((case, *(exponent(sizes, [sum(c.values()) for c in costs]) for costs in kinds_of(rows))))
    console.print(table)
    print_bandwidth(console)
    if len(arguments.models) > 1:
        listed = ", ".join(f"{case} {update:.2f} and {other:.2f}" for case, update, other in powers)
        console.print(f"The cost of a step with and without an update grows with the size to the power of:\n{listed}.")


def kinds_of(rows: list[Measured]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The costs of steps with an update, and of others."""
    return [row.update for row in rows], [row.other for row in rows]


if __name__ == "__main__":
    main()
