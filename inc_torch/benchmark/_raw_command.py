"""Any command as a benchmark: copies of it, each bound to its cores, whose printed lines are read."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from statistics import fmean
from typing import Final

from inc_torch.benchmark._cores import Placement, allowed_cpus, physical_cores, place
from inc_torch.benchmark._result_view import inc_summary
from inc_torch.config import BenchmarkConfig
from inc_torch.core.errors import ConfigError, ConfigTypeError

__all__ = ["benchmark_with_raw_cmd"]

_NUMBER: Final = r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)"
_LATENCY: Final = re.compile(rf"[Ll]atency:\s+{_NUMBER}\s*ms")
_THROUGHPUT: Final = re.compile(rf"[Tt]hroughput:\s+{_NUMBER}")
_BIND_AND_BECOME: Final = (
    "import ast, os, sys; os.sched_setaffinity(0, ast.literal_eval(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])"
)
_TAIL: Final = 2000
"""Characters of what a failing command printed that are shown."""


def benchmark_with_raw_cmd(
    raw_cmd: str, conf: BenchmarkConfig | None = None, *, config: BenchmarkConfig | None = None, clip: bool = False
) -> dict[str, float]:
    """Run copies of a shell command at the same time, each bound to its cores, and sum up what they print.

    A copy is expected to print ``Latency: 1.234 ms`` and ``Throughput: 810.4``. It is told its threads by
    ``OMP_NUM_THREADS``. On a machine with several NUMA nodes it is started by numactl where that is installed, so that
    its memory is next to its cores.

    Args:
        raw_cmd: What a shell would be given.
        conf: Of which ``num_of_instance``, ``cores_per_instance`` and ``intra_num_of_threads`` count.
        config: The same as ``conf``.
        clip: Take what cores there are where more are asked for, instead of an error.

    Returns:
        ``latency`` (seconds of a sample, the mean), ``throughput`` (samples in a second, the sum) and ``instances``
        (copies that printed both).

    Raises:
        ConfigError: There are not so many cores, no copy printed both lines, or a copy failed.

    Example:
        >>> command = 'echo "Latency: 2.000 ms"; echo "Throughput: 500.000 images/sec"'
        >>> found = benchmark_with_raw_cmd(command)
        <BLANKLINE>
        +------------------------------------------------------+
        |        **Multiple Instance Benchmark Summary**       |
        +---------------------------------------+--------------+
        | Items                                 | Result       |
        +---------------------------------------+--------------+
        | Latency average [second/sample]       | 0.002000     |
        | Throughput sum [samples/second]       | 500.000      |
        +---------------------------------------+--------------+
        >>> found["throughput"]
        500.0
    """
    given: object = raw_cmd
    if not isinstance(given, str) or not given.strip():
        message = f"benchmark_with_raw_cmd got raw_cmd={raw_cmd!r}: expected a command for the shell."
        raise ConfigTypeError(message)
    settings = conf or config or BenchmarkConfig()
    placements = place(settings, physical_cores(allowed_cpus()), clip=clip)
    outputs = _run_all([(_bound(raw_cmd, placement), placement) for placement in placements])
    latencies = [float(match[1]) / 1000 for text in outputs if (match := _LATENCY.search(text))]
    throughputs = [float(match[1]) for text in outputs if (match := _THROUGHPUT.search(text))]
    if len(latencies) != len(outputs) or len(throughputs) != len(outputs):
        missing = len(outputs) - min(len(latencies), len(throughputs))
        message = (
            f"{missing} of {len(outputs)} copies of {raw_cmd!r} printed no line 'Latency: x ms' or no line "
            f"'Throughput: x'; expected both. What the last one printed ends with: {outputs[-1][-_TAIL:]!r}."
        )
        raise ConfigError(message)
    found = {"latency": fmean(latencies), "throughput": sum(throughputs), "instances": float(len(outputs))}
    _print("\n".join(["", *inc_summary(found["latency"], found["throughput"])]))
    return found


def _print(text: str) -> None:
    from rich.console import Console

    Console(soft_wrap=True, highlight=False, markup=False).print(text)


def _bound(command: str, placement: Placement) -> list[str]:
    """The command for the shell, which is bound before it begins; by numactl where that does more than that."""
    shell = ["sh", "-c", command]
    if not placement.cpus or not hasattr(os, "sched_setaffinity"):
        return shell
    if placement.spans_nodes and shutil.which("numactl"):
        return ["numactl", "--localalloc", f"--physcpubind={','.join(map(str, placement.cpus))}", *shell]
    return [sys.executable, "-I", "-S", "-c", _BIND_AND_BECOME, repr(placement.cpus), *shell]


def _run_all(commands: Sequence[tuple[list[str], Placement]]) -> list[str]:
    """Run all at once, and return what each printed; none is left, whatever happens."""
    with ExitStack() as stack:
        # Files, as a pipe that nobody reads would stop a command that prints much.
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, processes)
        for (words, placement), log in zip(commands, logs, strict=True):
            environment = os.environ | (
                {} if placement.threads is None else {"OMP_NUM_THREADS": str(placement.threads)}
            )
            processes.append(
                subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
            )
        codes = [process.wait() for process in processes]
        outputs = []
        for log in logs:
            log.seek(0)
            outputs.append(log.read().decode(errors="replace"))
    for code, text in zip(codes, outputs, strict=True):
        if code:
            message = (
                f"A copy of the command {commands[0][0][-1]!r} ended with exit code {code}: expected 0. What it "
                f"printed ends with: {text[-_TAIL:]!r}."
            )
            raise ConfigError(message)
    return outputs


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
