"""Linear layers with weights of a few bits beside float ones: ``taskset -c 1 python benchmarks/few_bits.py``.

One thread. All candidates of a row run in one process by turns, the order changes from round to round, and what is
reported is the median of the rounds' ratios to the float layer: above 1 is faster.  The ways to compute are those of
`inc_torch.quantizers.computing_by`; "torch" is torch's own product of 4 and 8 bits, which it has for few rows alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from inc_torch.quantizers import QuantSpec, WeightOnlyScheme, computing_by, quantize_weights

LEAST_SECONDS = 0.01
SHAPES = [(576, 1536), (1536, 576), (4096, 4096)]
ROWS = [1, 4, 8, 16, 64, 256]
SCHEMES = {
    "4 bits": WeightOnlyScheme(4, 32),
    "4 bits, asym": WeightOnlyScheme(4, 128, symmetric=False),
    "3 bits": WeightOnlyScheme(3, 64),
    "8 bits": WeightOnlyScheme(8, -1),
    "nf4": WeightOnlyScheme(codes="nf4", group_size=64),
}
PATHS = ("inc_torch", "torch", "reference")


def seconds(call: Callable[[], object]) -> float:
    """CPU time of one call, of as many as take `LEAST_SECONDS`."""
    count, start = 0, time.process_time()
    while time.process_time() - start < LEAST_SECONDS:
        call()
        count += 1
    return (time.process_time() - start) / count


def ratios(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """How many times faster than the first each call is."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    first = next(iter(calls))
    for turn in range(rounds + 1):
        order = list(calls) if turn % 2 else list(reversed(calls))
        found = {name: seconds(calls[name]) for name in order}
        if turn:  # the first round warms up
            for name in calls:
                taken[name].append(found[first] / found[name])
    return {name: statistics.median(values) for name, values in taken.items()}


def run_by(path: str, layer: nn.Module, inputs: torch.Tensor) -> None:
    with computing_by(path):
        layer(inputs)


@torch.inference_mode()
def measured(shape: tuple[int, int], scheme: WeightOnlyScheme, dtype: torch.dtype, rows: int, rounds: int) -> list[str]:
    """The cells of a row: milliseconds in float, and ratios."""
    outputs, inputs = shape
    layer = nn.Linear(inputs, outputs, bias=False)
    given = torch.randn(rows, inputs, dtype=dtype)
    plain = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    quantize_weights(layer, QuantSpec(scheme))
    calls = {"float": partial(plain, given), **{path: partial(run_by, path, layer, given) for path in PATHS}}
    found = ratios(calls, rounds)
    return [f"{1e3 * seconds(calls['float']):.3f}", *(f"{found[path]:.2f}" for path in PATHS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one shape, few rows")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    table = Table(title="Linear layers, one thread: times faster than in float")
    for column in ("out, in", "weights", "dtype", "rows", "float, ms", *PATHS):
        table.add_column(column, justify="left" if column in {"weights", "dtype"} else "right")
    for shape in SHAPES[: 1 if options.quick else None]:
        for name, scheme in SCHEMES.items():
            for dtype in (torch.float32, torch.bfloat16):
                for rows in ROWS[: 2 if options.quick else None]:
                    cells = measured(shape, scheme, dtype, rows, options.rounds)
                    kind = str(dtype).removeprefix("torch.")
                    table.add_row(f"{shape[0]}x{shape[1]}", name, kind, str(rows), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
