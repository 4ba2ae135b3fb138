"""int8 inference of this package beside its peers: ``make bench-int8``, or ``python benchmarks/int8_peers/run.py``.

Every candidate is a process of its own with the same weights, the same inputs and the same data to calibrate on; one
of them runs at a time, in rounds whose order changes. What counts is the ratio to float32 in eager mode within a
round: its median and quartiles over the rounds. Time is CPU time of the process on one thread, and time by the clock
on more. Each answer is compared with that of float32.

    python benchmarks/int8_peers/run.py --models resnet50 --batch 1 --candidates fp32,inc_torch,openvino --rounds 7

Run it with the interpreter of the peers' environment, or name that by ``--peers``; without the environment for IPEX
(``--ipex``) that candidate fails and the rest is measured. ``--write`` puts results into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.int8_peers.candidates import CANDIDATES  # noqa: E402
from benchmarks.int8_peers.measure import ROOT, Place, Workload, measure  # noqa: E402
from benchmarks.int8_peers.models import MODELS  # noqa: E402
from benchmarks.int8_peers.publish import store, write_page  # noqa: E402
from benchmarks.int8_peers.report import result, show  # noqa: E402


def make_material(place: Place, loads: list[Workload]) -> None:
    """Make the files that are missing."""
    missing: dict[str, set[int]] = {}
    for load in loads:
        if not (place.material / f"{load.model}-{load.batch}.data.pt").exists():
            missing.setdefault(load.model, set()).add(load.batch)
    if missing:
        wanted = [f"{name}:{','.join(map(str, sorted(sizes)))}" for name, sizes in missing.items()]
        command = [place.pythons["peers"], "-m", "benchmarks.int8_peers.material", place.material, *wanted]
        subprocess.run(list(map(str, command)), cwd=ROOT, check=True)


def cases_of(arguments: argparse.Namespace) -> list[list[Workload]]:
    """List what to measure: for each model and batch size the workloads, which differ by the number of threads."""
    return [
        [Workload(name, batch, threads) for threads in arguments.threads]
        for name in arguments.models
        for batch in arguments.batch or MODELS[name].batches
    ]


def names_of(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in CANDIDATES]
    if unknown:
        message = f"no candidate {', '.join(unknown)}; there are {', '.join(CANDIDATES)}"
        raise argparse.ArgumentTypeError(message)
    return names


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batch", nargs="+", type=int, help="by default those of each model")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--candidates", type=names_of, default=list(CANDIDATES), metavar="NAME,NAME,...")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", type=float, default=12, metavar="GIB", help="of the processes held at a time")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the one for single threads")
    parser.add_argument("--peers", type=Path, default=Path(sys.executable), metavar="PYTHON")
    parser.add_argument("--ipex", type=Path, default=None, metavar="PYTHON")
    parser.add_argument("--output", type=Path, default=Path.home() / ".cache/inc_torch/int8_peers")
    parser.add_argument("--write", action="store_true", help="put results into results.json and docs/benchmarks.md")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of()
    pythons = {"peers": arguments.peers, "ipex": arguments.ipex or arguments.peers}
    place = Place(pythons, arguments.output.resolve(), arguments.core)
    cases = cases_of(arguments)
    make_material(place, [load for loads in cases for load in loads])
    for loads in cases:
        busy = os.getloadavg()[0]
        measured = measure(loads, arguments.candidates, place, arguments.rounds, arguments.memory * 2**30)
        for load, outcomes in zip(loads, measured, strict=True):
            rows = [result(load, outcome) for outcome in outcomes]
            show(rows)
            if arguments.write:
                store(rows, [busy, os.getloadavg()[0]])
        if arguments.write:
            write_page()


if __name__ == "__main__":
    main()
