"""What compression adds to a training step on several processes: milliseconds in hooks, beside a step without any.

``hooks`` is a step that leaves the masks alone, ``new masks`` one that changes them. Starts 1, 2 and 4 processes here
by itself: gloo on the CPU, one thread each. The model is the Linear layers of a small transformer encoder, the
batch is split among the ranks, every rank is measured, and the slowest is shown. Where there are more processes than
cores they share them, and the times show it.

    python benchmarks/distributed/run.py [--ranks 1 2 4] [--layouts ddp fsdp2] [--width 256] [--steps 30]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from inc_torch import WeightPruningConfig, prepare_compression

BATCH = 512
BLOCKS = 2
UPDATES_EVERY = 2
"""Every second step has new masks, so that steps with and without are measured side by side."""


def pruning(pattern: str, steps: int) -> WeightPruningConfig:
    return WeightPruningConfig(
        target_sparsity=0.8,
        pattern=pattern,
        start_step=1,
        end_step=2 * steps,  # not reached: masks change to the end
        pruning_frequency=UPDATES_EVERY,
        min_sparsity_ratio_per_op=0.3,
        max_sparsity_ratio_per_op=0.95,
    )


TECHNIQUES: dict[str, Callable[[int], Any]] = {
    "pruning 4x1": lambda steps: pruning("4x1", steps),
    "pruning 1x1": lambda steps: pruning("1x1", steps),
}
"""What is measured: a config for a number of steps. All use snip_momentum, global scope and limits."""


def build(width: int) -> nn.Sequential:
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    return nn.Sequential(*(nn.Linear(*shape, bias=False) for _ in range(BLOCKS) for shape in shapes), nn.ReLU())


def wrap(layout: str, model: nn.Sequential) -> nn.Module:
    if layout == "ddp":
        return DistributedDataParallel(model)
    blocks = len(model) // BLOCKS
    for start in range(0, blocks * BLOCKS, blocks):
        fully_shard(list(model[start : start + blocks]))
    fully_shard(model)
    return model


class Stopwatch:
    """Adds up the seconds of the calls that go through it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, call: Callable[..., Any], *arguments: object) -> None:
        """Call, and add its seconds."""
        start = time.perf_counter()
        call(*arguments)
        self.seconds += time.perf_counter() - start


def measure(layout: str, technique: str | None, width: int, steps: int) -> dict[str, float]:
    """Medians over steps, in milliseconds: whole steps, and hooks in steps with new masks and in others."""
    torch.manual_seed(0)
    model = build(width)
    manager = prepare_compression(model, TECHNIQUES[technique](steps)) if technique else None
    wrapped = wrap(layout, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    data = torch.randn(BATCH // distributed.get_world_size(), width)
    whole, hooks = [], []
    if manager:
        manager.on_train_begin()
    for index in range(steps):
        distributed.barrier()
        watch, start = Stopwatch(), time.perf_counter()
        if manager:
            watch(manager.on_step_begin, index)
        wrapped(data).square().mean().backward()
        if manager:
            watch(manager.on_before_optimizer_step)
        optimizer.step()
        if manager:
            watch(manager.on_after_optimizer_step)
        optimizer.zero_grad()
        whole.append((time.perf_counter() - start) * 1e3)
        hooks.append(watch.seconds * 1e3)
    if manager:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the goal is not reached, on purpose
            manager.on_train_end()
    warm = range(4, steps)
    with_update = [index for index in warm if (index - 1) % UPDATES_EVERY == 0]
    others = [index for index in warm if index not in with_update]
    return {
        "step": statistics.median(whole[index] for index in warm),
        "hooks": statistics.median(hooks[index] for index in others),
        "hooks with new masks": statistics.median(hooks[index] for index in with_update),
    }


def live(rank: int, size: int, folder: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    results = {
        (layout, technique): measure(layout, technique, arguments.width, arguments.steps)
        for layout in arguments.layouts
        for technique in (None, *TECHNIQUES)
    }
    gathered: list[Any] = [None] * size
    distributed.all_gather_object(gathered, results)
    if rank == 0:
        slowest = {
            key: {name: max(own[key][name] for own in gathered) for name in values} for key, values in results.items()
        }
        torch.save(slowest, Path(folder) / "results")
    distributed.barrier()
    distributed.destroy_process_group()


def run_world(size: int, arguments: argparse.Namespace) -> dict[tuple[str, str | None], dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=live, args=(rank, size, folder, arguments)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit(1)
        results: dict[tuple[str, str | None], dict[str, float]] = torch.load(Path(folder) / "results")
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--layouts", nargs="+", choices=["ddp", "fsdp2"], default=["ddp", "fsdp2"])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    count = sum(parameter.numel() for parameter in build(arguments.width).parameters())
    table = Table(
        title=f"Milliseconds in a step and in its hooks, medians of {arguments.steps - 4}, slowest rank",
        caption=(
            f"{count / 1e6:.1f} M parameters, {BATCH} rows a step, split among ranks, AdamW, float32; gloo, one thread "
            f"a process, {os.cpu_count()} cores for all; snip_momentum, global, with limits"
        ),
    )
    for column in ("layout", "ranks", "technique", "step", "hooks", "share", "new masks", "share"):
        table.add_column(column, justify="left" if column in ("layout", "technique") else "right", no_wrap=True)
    for size in arguments.ranks:
        results = run_world(size, arguments)
        for layout in arguments.layouts:
            without = results[layout, None]["step"]
            for technique in TECHNIQUES:
                own = results[layout, technique]
                table.add_row(
                    layout,
                    str(size),
                    technique,
                    f"{without:.1f}",
                    *(
                        cell
                        for name in ("hooks", "hooks with new masks")
                        for cell in (f"{own[name]:.1f}", f"{own[name] / without:.0%}")
                    ),
                )
    Console().print(table)


if __name__ == "__main__":
    main()
