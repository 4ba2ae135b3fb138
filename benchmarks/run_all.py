"""Run the benchmarks that take minutes, one after the other: ``make bench``, or ``python benchmarks/run_all.py``.

With ``--write`` what each of them prints is put into its section of docs/benchmarks.md, with the machine and the date.

    python benchmarks/run_all.py [pruning_hooks qat_step ...] [--write]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.int8_peers.machine import Machine  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"
WIDTH = 120


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A program that prints tables.

    Attributes:
        script: Its path in ``benchmarks``.
        arguments: What is asked of it.
    """

    script: str
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What to type for it alone."""
        return " ".join(("python", f"benchmarks/{self.script}", *self.arguments))

    def printed(self) -> str:
        """Run it.

        Raises:
            subprocess.CalledProcessError: It failed; it has said why.
        """
        environment = {**os.environ, "COLUMNS": str(WIDTH), "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
        command = [sys.executable, str(ROOT / "benchmarks" / self.script), *self.arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


BENCHMARKS = {
    "int8_inference": Benchmark("int8_inference.py"),
    "mixed_precision": Benchmark("mixed_precision.py"),
    "pruning_hooks": Benchmark("pruning_hooks/run.py"),
    "qat_step": Benchmark("qat_step.py"),
    "slimming": Benchmark("slimming.py"),
    "few_bits": Benchmark("few_bits.py"),
    "kernels": Benchmark("kernels.py"),
    "tuning": Benchmark("tuning/run.py"),
    "distributed": Benchmark("distributed/run.py"),
}


def markers(name: str) -> tuple[str, str]:
    """What encloses the figures of one benchmark on the page."""
    return f"<!-- {name}: begin (written by make bench-all) -->", f"<!-- {name}: end -->"


def figures(benchmark: Benchmark, printed: str, seconds: float) -> str:
    """What was printed, under the command, the machine and the date."""
    machine = Machine.of_this()
    facts = f"{machine.title}, {machine.cores} cores, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    return f"`{benchmark.command}` ({facts}; {seconds / 60:.0f} min)\n\n```text\n{printed}\n```"


def with_figures(page: str, found: Mapping[str, str]) -> str:
    """The page with new figures between the markers of each name; what has none yet is put at the end."""
    for name, text in found.items():
        begin, end = markers(name)
        filled = f"{begin}\n\n{text}\n\n{end}"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        page, count = pattern.subn(lambda _, filled=filled: filled, page)
        if not count:
            page = f"{page.rstrip()}\n\n## {name.replace('_', ' ').capitalize()}\n\n{filled}\n"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--write", action="store_true", help="put figures into docs/benchmarks.md")
    asked = parser.parse_args()
    unknown = set(asked.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(BENCHMARKS)}")
    for name in asked.names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        print(f"== {benchmark.command}", flush=True)
        start = time.perf_counter()
        printed = benchmark.printed()
        print(printed, flush=True)
        if asked.write:  # at once, so that what comes later and fails takes nothing away
            text = figures(benchmark, printed, time.perf_counter() - start)
            PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), {name: text}), encoding="utf-8")


if __name__ == "__main__":
    main()
