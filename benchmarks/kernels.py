"""How fast the compiled kernels are beside PyTorch's: ``taskset -c 1 python benchmarks/kernels.py``.

Each pair of candidates runs in one process by turns, the order changes from round to round, and what is reported is the
median of the rounds' ratios. Time is CPU time of the process, which on one thread is the latency on an idle machine.
GOPS count two operations for each product.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from inc_torch import kernels
from inc_torch.kernels import Activation, Grid, Program

GRID = Grid(0.02, 12)
LEAST_SECONDS = 0.004
# Convolutions of ResNet-50 at 224 x 224: channels, size of the image, output, kernel, stride, how many.
RESNET50 = [
    (3, 224, 64, 7, 2, 1),
    (64, 56, 64, 1, 1, 1),
    (64, 56, 64, 3, 1, 3),
    (64, 56, 256, 1, 1, 4),
    (256, 56, 64, 1, 1, 2),
    (256, 56, 128, 1, 1, 1),
    (128, 56, 128, 3, 2, 1),
    (128, 28, 512, 1, 1, 4),
    (256, 56, 512, 1, 2, 1),
    (512, 28, 128, 1, 1, 3),
    (128, 28, 128, 3, 1, 3),
    (512, 28, 256, 1, 1, 1),
    (256, 28, 256, 3, 2, 1),
    (256, 14, 1024, 1, 1, 6),
    (512, 28, 1024, 1, 2, 1),
    (1024, 14, 256, 1, 1, 5),
    (256, 14, 256, 3, 1, 5),
    (1024, 14, 512, 1, 1, 1),
    (512, 14, 512, 3, 2, 1),
    (512, 7, 2048, 1, 1, 3),
    (1024, 14, 2048, 1, 2, 1),
    (2048, 7, 512, 1, 1, 2),
    (512, 7, 512, 3, 1, 2),
]
# Depthwise convolutions of EfficientNet-Lite0 and MobileNets: channels, size, kernel, stride.
DEPTHWISE = [
    (32, 112, 3, 1),
    (96, 112, 3, 2),
    (144, 56, 3, 1),
    (144, 56, 5, 2),
    (240, 28, 5, 1),
    (480, 14, 5, 1),
    (672, 14, 5, 1),
    (1152, 7, 5, 1),
]
LINEAR = [
    (128, 768, 3072),
    (128, 3072, 768),
    (128, 768, 768),
    (128, 768, 2304),
    (1024, 768, 3072),
    (1024, 3072, 768),
    (1, 768, 3072),
    (1, 576, 1536),
    (1, 1536, 576),
    (1, 576, 49152),
    (16, 768, 3072),
]


@dataclass(frozen=True)
class Result:
    """Seconds of a call of both, and how many times faster ours is."""

    ours: float
    theirs: float
    ratio: float


def seconds(call: Callable[[], object], count: int) -> float:
    begin = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - begin) / count


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> Result:
    """Run both by turns."""
    for call in (ours, theirs):
        call()
    count = max(1, round(LEAST_SECONDS / max(seconds(theirs, 3), 1e-6)))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which].append(seconds((ours, theirs)[which], count))
    ratio = statistics.median(slow / fast for fast, slow in zip(*times, strict=True))
    return Result(statistics.median(times[0]), statistics.median(times[1]), ratio)


def codes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def weights(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def linear_pair(
    rows: int, columns: int, outputs: int, activation: Activation
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A linear layer, uint8 to uint8."""
    source, weight, bias = codes(rows, columns), weights(outputs, columns), torch.randn(outputs)
    scale = torch.full((outputs,), 0.001)
    target = torch.empty(rows, outputs, dtype=torch.uint8)
    step = kernels.linear(
        source, kernels.pack_linear(weight), GRID, scale, bias, target, activation=activation, output_grid=GRID
    )
    packed, zero = torch.ops.onednn.qlinear_prepack(weight, None), torch.zeros(outputs, dtype=torch.int64)
    name = activation.value

    def theirs() -> torch.Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            source, GRID.scale, GRID.zero_point, packed, scale, zero, bias, GRID.scale, GRID.zero_point, torch.uint8,
            name, [], "none" if name == "gelu" else ""
        )  # fmt: skip

    return Program([step]).run, theirs


def conv_pair(
    channels: int, size: int, outputs: int, kernel: int, stride: int, groups: int, batch: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A convolution with ReLU, uint8 to uint8."""
    source = codes(batch, channels, size, size).to(memory_format=torch.channels_last)
    weight, bias, scale = (
        weights(outputs, channels // groups, kernel, kernel),
        torch.randn(outputs),
        torch.rand(outputs),
    )
    padding = kernel // 2
    side = (size + 2 * padding - kernel) // stride + 1
    target = torch.empty(batch, outputs, side, side, dtype=torch.uint8).to(memory_format=torch.channels_last)
    packed_ours = kernels.pack_conv(weight, groups)
    step = kernels.conv2d(
        source, packed_ours, GRID, scale, bias, stride, padding, 1, groups, target,
        activation=Activation.RELU, output_grid=GRID,
    )  # fmt: skip
    packed = torch.ops.onednn.qconv_prepack(
        weight, scale, GRID.scale, GRID.zero_point, [stride] * 2, [padding] * 2, [1, 1], groups, list(source.shape)
    )
    zero = torch.zeros(outputs, dtype=torch.int64)

    def theirs() -> torch.Tensor:
        return torch.ops.onednn.qconv_pointwise(
            source, GRID.scale, GRID.zero_point, packed, scale, zero, bias, [stride] * 2, [padding] * 2, [1, 1], groups,
            GRID.scale, GRID.zero_point, torch.uint8, "relu", [], ""
        )  # fmt: skip

    return Program([step]).run, theirs


def attention_pair(heads: int, queries: int, keys: int, size: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Attention of float32 heads beside explicit products in bfloat16, or SDPA for one query."""
    query, key, value = (torch.randn(1, count, heads, size).transpose(1, 2) for count in (queries, keys, keys))
    output = torch.empty(1, queries, heads, size)
    step = kernels.attention(query, key, value, output, size**-0.5, None, causal=False)
    halves = [tensor.bfloat16() for tensor in (query, key, value)]

    def theirs() -> torch.Tensor:
        if queries == 1:
            return F.scaled_dot_product_attention(query, key, value)
        scores = halves[0] @ halves[1].transpose(2, 3) * size**-0.5
        return torch.softmax(scores, -1) @ halves[2]

    return Program([step]).run, theirs


def norm_pair(rows: int, columns: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Layer norm of a sum, floats and codes."""
    values, residual, weight, bias = (
        torch.randn(*shape) for shape in ((rows, columns), (rows, columns), (columns,), (columns,))
    )
    output, rounded = torch.empty(rows, columns), torch.empty(rows, columns, dtype=torch.uint8)
    step = kernels.layer_norm(values, weight, bias, 1e-5, output, rounded, GRID, residual=residual)

    def theirs() -> torch.Tensor:
        return F.layer_norm(values + residual, (columns,), weight, bias)

    return Program([step]).run, theirs


def quantize_pair(rows: int, columns: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Rounding beside fbgemm's."""
    values, rounded = torch.randn(rows, columns), codes(rows, columns)
    shift = torch.tensor(2.0**23 + GRID.zero_point)

    def theirs() -> torch.Tensor:
        shifted = torch.add(shift, values, alpha=1 / GRID.scale).clamp_(2.0**23, 2.0**23 + 255)
        return shifted.view(torch.int32).to(torch.uint8)

    return Program([kernels.quantize(values, rounded, GRID)]).run, theirs


def row(table: Table, name: str, result: Result, operations: float = 0) -> None:
    speed = f"{operations / result.ours / 1e9:.0f}" if operations else ""
    table.add_row(name, f"{result.ours * 1e6:.1f}", f"{result.theirs * 1e6:.1f}", f"{result.ratio:.2f}", speed)


def table_of(title: str) -> Table:
    table = Table(title=title)
    for name in ("what", "ours, us", "PyTorch, us", "times faster", "GOPS"):
        table.add_column(name, justify="left" if name == "what" else "right")
    return table


def linear_table(rounds: int) -> Table:
    table = table_of("Linear, uint8 to uint8, beside oneDNN")
    for rows, columns, outputs in LINEAR:
        for activation in (
            (Activation.NONE, Activation.GELU) if (columns, outputs) == (768, 3072) else (Activation.NONE,)
        ):
            result = compare(*linear_pair(rows, columns, outputs, activation), rounds)
            row(table, f"{rows} x {columns} x {outputs} {activation.value}", result, 2 * rows * columns * outputs)
    return table


def conv_table(rounds: int, batch: int) -> Table:
    table = table_of(f"Convolutions of ResNet-50, batch {batch}, uint8 to uint8 with ReLU, beside oneDNN")
    ours = theirs = total = 0.0
    for channels, size, outputs, kernel, stride, count in RESNET50:
        result = compare(*conv_pair(channels, size, outputs, kernel, stride, 1, batch), rounds)
        operations = 2 * batch * channels * outputs * kernel**2 * (size // stride) ** 2
        row(table, f"{count} of {channels} x {size} -> {outputs}, {kernel} / {stride}", result, operations)
        ours, theirs, total = ours + count * result.ours, theirs + count * result.theirs, total + count * operations
    row(table, "all", Result(ours, theirs, theirs / ours), total)
    return table


def depthwise_table(rounds: int) -> Table:
    table = table_of("Depthwise convolutions, uint8 to uint8 with ReLU, beside oneDNN")
    for channels, size, kernel, stride in DEPTHWISE:
        result = compare(*conv_pair(channels, size, channels, kernel, stride, channels, 1), rounds)
        row(table, f"{channels} x {size}, {kernel} / {stride}", result, 2 * channels * (size // stride * kernel) ** 2)
    return table


def other_table(rounds: int) -> Table:
    table = table_of("Attention, norms, rounding")
    for heads, queries, keys, size in ((12, 128, 128, 64), (12, 512, 512, 64), (9, 1, 128, 64), (9, 1, 1024, 64)):
        result = compare(*attention_pair(heads, queries, keys, size), rounds)
        row(table, f"attention {heads} x {queries} x {keys} x {size}", result, 4 * heads * queries * keys * size)
    row(table, "layer norm of a sum, and codes, 128 x 768", compare(*norm_pair(128, 768), rounds))
    row(table, "quantize 128 x 768", compare(*quantize_pair(128, 768), rounds))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", choices=("linear", "conv", "depthwise", "other"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kernels.require()
    tables = {
        "linear": lambda: linear_table(chosen.rounds),
        "conv": lambda: conv_table(chosen.rounds, chosen.batch),
        "depthwise": lambda: depthwise_table(chosen.rounds),
        "other": lambda: other_table(chosen.rounds),
    }
    console = Console()
    for name, make in tables.items():
        if chosen.only in (None, name):
            console.print(make())


if __name__ == "__main__":
    main()
