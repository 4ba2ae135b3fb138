"""One candidate on one workload, in a process of its own: ``python -m benchmarks.int8_peers.worker ...``.

Answers each line of its input by one of JSON: ``{"threads": n}`` prepares the model for so many threads and says how
far its answer is from that of float32, ``{"repeats": k}`` gives the seconds of one run. Nothing else is ever written to
standard output: what libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import Tensor

from benchmarks.int8_peers.candidates import CANDIDATES
from benchmarks.int8_peers.job import Job, NotRunError, Runner
from benchmarks.int8_peers.models import PROMPT

WARM_UP = 3
LONGEST_MESSAGE = 160


def private_output() -> TextIO:
    """Return what was standard output, and let everything else that is printed go to standard error."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return channel


def workload(job: Job, runner: Runner) -> tuple[Callable[[], Tensor], int]:
    """Return what is timed, with its answer in float32, and the number of results in one call of it."""
    if job.model.kind != "decoder":
        example = job.example
        return lambda: runner(*example), 1
    keys, values, tokens = job.data["keys"].clone(), job.data["values"].clone(), job.data["tokens"]

    def decode() -> Tensor:
        logits = []
        for number in range(tokens.shape[1]):
            slot = slice(PROMPT + number, PROMPT + number + 1)
            out = runner(tokens[:, number : number + 1], torch.tensor([[PROMPT + number]]), keys, values)
            logits.append(torch.as_tensor(out[0]).clone())  # backends may use their buffer again
            keys[:, :, :, slot], values[:, :, :, slot] = torch.as_tensor(out[1]), torch.as_tensor(out[2])
        return torch.cat(logits)

    return decode, tokens.shape[1]


def distance(got: Any, expected: Tensor) -> dict[str, float]:
    """Cosine and relative error of an answer against that of float32."""
    got, expected = torch.as_tensor(got).double().flatten(), expected.double().flatten()
    cosine = torch.nn.functional.cosine_similarity(got, expected, dim=0)
    return {"cosine": float(cosine), "error": float((got - expected).norm() / expected.norm())}


def timed(run: Callable[[], Tensor], repeats: int, results: int) -> dict[str, float]:
    """Seconds for one result: of the process and by the clock."""
    clock, process = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    count = repeats * results
    return {"cpu": (time.process_time() - process) / count, "wall": (time.perf_counter() - clock) / count}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def told(error: Exception) -> str:
    """Return the first line of a message, without folders of this machine and cut where it gets long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return re.sub(r"\s*\(?(?<![\w.])/[\w./+~-]*/[\w.+-]+\)?", "", lines[0])[:LONGEST_MESSAGE]


def prepare(name: str, job: Job) -> tuple[Callable[[], Tensor], int, dict[str, Any]]:
    candidate = CANDIDATES[name]
    build = getattr(importlib.import_module(f"benchmarks.int8_peers.candidates.{candidate.module}"), candidate.function)
    torch.set_num_threads(job.threads)
    expected = job.data["expected"]
    start = time.perf_counter()
    with torch.no_grad():
        runner = build(job)
        run, results = workload(job, runner)
        far = distance(run(), expected)
        built = time.perf_counter() - start
        for _ in range(WARM_UP - 1):
            run()
        # A graph that writes into its input gives another answer the second time.
        again = distance(run(), expected)
    if again["error"] > 2 * far["error"] + 1e-6:
        message = f"its answer drifts from call to call: relative error {far['error']:.3g}, later {again['error']:.3g}"
        raise RuntimeError(message)
    gc.collect()
    once = timed(run, 1, results)
    facts = {
        "build": built,
        "memory": resident_bytes(),
        "versions": candidate.versions(),
        "once": once["wall"] * results,
    }
    return run, results, far | facts


class Session:
    """Answers requests for one candidate and one job, of which it keeps what was prepared last."""

    def __init__(self, name: str, load: Callable[[], Job]) -> None:
        self.name, self.load = name, load
        self.run: Callable[[], Tensor] | None = None
        self.results = 1

    @cached_property
    def job(self) -> Job:
        """The model with its weights and data."""
        return self.load()

    def answer(self, request: dict[str, int]) -> dict[str, Any]:
        """Prepare for a number of threads, or time what is prepared."""
        if "threads" in request:
            return self.prepared(request["threads"])
        assert self.run is not None  # noqa: S101
        with torch.no_grad():
            return timed(self.run, request["repeats"], self.results)

    def prepared(self, threads: int) -> dict[str, Any]:
        """Prepare, or say why that was not possible."""
        self.run = None  # frees its memory
        gc.collect()
        try:
            self.run, self.results, facts = prepare(self.name, self.job.on(threads))
        except NotRunError as reason:
            return {"not_run": str(reason)}
        except Exception as error:  # noqa: BLE001  a peer may raise anything; the table shows it
            traceback.print_exc()
            return {"fails": f"{type(error).__name__}: {told(error)}"}
        return facts


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("candidate", "model"):
        parser.add_argument(name)
    parser.add_argument("batch", type=int)
    for name in ("material", "scratch"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    channel = private_output()
    warnings.simplefilter("ignore")
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    session = Session(
        arguments.candidate,
        lambda: Job.load(arguments.material, arguments.model, arguments.batch, 1, arguments.scratch),
    )
    for line in sys.stdin:
        print(json.dumps(session.answer(json.loads(line))), file=channel)


if __name__ == "__main__":
    main()
