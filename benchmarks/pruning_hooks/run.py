"""What pruning hooks cost: CPU time per prunable parameter and step, and memory per prunable parameter.

snip_momentum, 4x1 blocks, global scope, limits for every layer, new masks in every step (frequency 1), AdamW whose
momentum is masked too. One thread, process CPU time, median over steps; the optimizer's own step is not counted.

    python benchmarks/pruning_hooks/run.py [--models tiny mini bert]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from inc_torch import WeightPruningConfig, prepare_compression
from inc_torch.callbacks import PruningCallbacks

# width, feed-forward width, layers: the encoders of small BERTs.
MODELS = {"tiny": (256, 1024, 4), "mini": (384, 1536, 6), "bert": (768, 3072, 12)}
STEPS = 20
HOOKS = ("on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step")


def build(width: int, inner: int, layers: int) -> nn.Sequential:
    """The Linear layers of a transformer encoder, and a ReLU so that none is taken for a classifier."""
    block = [(width, width)] * 4 + [(width, inner), (inner, width)]
    return nn.Sequential(*(nn.Linear(*shape) for _ in range(layers) for shape in block), nn.ReLU())


def resident(key: str) -> int:
    """Bytes of resident memory: ``VmRSS`` now, ``VmHWM`` the greatest since it was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) * 1024


def measure(name: str) -> dict[str, float]:
    torch.manual_seed(0)
    model = build(*MODELS[name])
    config = WeightPruningConfig(
        target_sparsity=0.8,
        pattern="4x1",
        start_step=1,
        end_step=STEPS,
        min_sparsity_ratio_per_op=0.3,
        max_sparsity_ratio_per_op=0.95,
    )
    manager = prepare_compression(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    count = sum(weight.numel() for weight in weights)
    manager.on_train_begin()
    times: dict[str, list[float]] = {hook: [] for hook in HOOKS}
    peak = 0
    for index in range(STEPS + 1):
        # Layers differ in the size of their gradients, so that the limits really bind.
        for rank, weight in enumerate(weights):
            gradient = torch.empty_like(weight) if weight.grad is None else weight.grad
            weight.grad = gradient.normal_(0, 2 ** (rank % 5))
        for hook, call in (
            ("on_step_begin", lambda index=index: manager.on_step_begin(index)),
            ("on_before_optimizer_step", manager.on_before_optimizer_step),
            ("optimizer", optimizer.step),
            ("on_after_optimizer_step", manager.on_after_optimizer_step),
        ):
            Path("/proc/self/clear_refs").write_text("5")
            before, start = resident("VmRSS"), time.process_time()
            call()
            seconds = time.process_time() - start
            if hook in times and index > 2:
                times[hook].append(seconds)
                peak = max(peak, resident("VmHWM") - before)
        manager.on_step_end()
    manager.on_train_end()
    (pruning,) = (callback for callback in manager.callbacks.callbacks_list if isinstance(callback, PruningCallbacks))
    state = pruning.pruners[0].state_dict()
    lasting = sum(t.numel() * t.element_size() for kind in ("masks", "scores") for t in state[kind].values())
    medians = {hook: statistics.median(values) * 1e9 / count for hook, values in times.items()}
    return {
        "parameters": count / 1e6,
        **medians,
        "total": sum(medians.values()),
        "lasting": lasting / count,
        "peak": peak / count,
        "sparsity": manager.report().sparsity,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    torch.set_num_threads(1)
    table = Table(title="Pruning hooks at every step: ns of CPU and bytes per prunable parameter")
    for column in ("model", "M params", "begin", "before", "after", "ns in all", "kept", "at peak"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in parser.parse_args().models:
        row = measure(name)
        assert abs(row["sparsity"] - 0.8) < 1e-3, row  # noqa: S101  a benchmark of something that works
        cells = [row["parameters"], *(row[hook] for hook in HOOKS), row["total"], row["lasting"], row["peak"]]
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
