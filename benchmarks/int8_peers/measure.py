"""Workers side by side, one of them running at a time: prepare, then rounds in an order that changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import selectors
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.int8_peers.candidates import BASE, CANDIDATES

ROOT = Path(__file__).resolve().parents[2]
PREPARE_SECONDS = 400
BLOCK_SECONDS = 0.3  # of one candidate in one round, at least


def digest_of(*files: str) -> str:
    """Name a state of some files of this folder."""
    contents = b"".join((Path(__file__).parent / file).read_bytes() for file in files)
    return hashlib.sha256(contents).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Workload:
    """A model at a batch size and a number of threads."""

    model: str
    batch: int
    threads: int

    def __str__(self) -> str:
        return f"{self.model} b{self.batch}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are.

    Attributes:
        pythons: The interpreter of each environment.
        output: The folder for material, scratch files and logs.
        core: The processor that single threads are bound to.
    """

    pythons: dict[str, Path]
    output: Path
    core: int

    @property
    def material(self) -> Path:
        """The folder of what `material` made, for the present state of its code."""
        return self.output / f"material-{digest_of('models.py', 'material.py')}"

    def scratch(self, name: str, load: Workload) -> Path:
        """The folder of a candidate's own files, for the present state of all code that makes them."""
        own = f"candidates/{CANDIDATES[name].module}.py"
        return (
            self.output / f"scratch-{digest_of('models.py', 'material.py', own)}" / f"{name}-{load.model}-{load.batch}"
        )

    def environment(self, threads: int) -> dict[str, str]:
        """Return the variables of a worker: its threads, and memory that is kept when freed, as servers keep it."""
        wanted = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "MALLOC_TRIM_THRESHOLD_": str(2**31),
            "MALLOC_MMAP_THRESHOLD_": str(2**31),
            "PYTHONPATH": str(ROOT),
        }
        return {**os.environ, **wanted}


@dataclass(slots=True)
class Worker:
    """A candidate's process, and what it said."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, load: Workload, place: Place) -> Worker:
        """Start a candidate's process; it begins to prepare at once."""
        python = place.pythons[CANDIDATES[name].environment]
        log = place.output / "logs" / f"{name}-{load.model}-{load.batch}-{load.threads}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(python), "-m", "benchmarks.int8_peers.worker", name, load.model]
        command += [str(load.batch), str(load.threads), str(place.material), str(place.scratch(name, load))]
        with log.open("w") as errors:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=place.environment(load.threads),
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        return cls(name, process, log)

    def wait_until_ready(self) -> Worker:
        """Wait for what it says of its preparation, and end it if that failed."""
        start = time.monotonic()
        self.facts = self.answer(PREPARE_SECONDS)
        if not self.is_ready:
            self.stop()
        said = "ready" if self.is_ready else self.facts
        print(f"  {self.name}: {said} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        return self

    @property
    def is_ready(self) -> bool:
        """Whether it can be timed."""
        return "cosine" in self.facts

    def ask(self, repeats: int) -> None:
        """Let it run and keep what it says."""
        assert self.process.stdin is not None  # noqa: S101
        try:
            print(json.dumps({"repeats": repeats}), file=self.process.stdin, flush=True)
            answer = self.answer(PREPARE_SECONDS)
        except BrokenPipeError:
            answer = {"fails": self.ending()}
        if "fails" in answer:
            self.facts = answer
        else:
            self.rows.append(answer)

    def answer(self, seconds: float) -> dict[str, Any]:
        """Read one line, or say why none came."""
        assert self.process.stdout is not None  # noqa: S101
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self.process.kill()
                return {"fails": f"no answer in {seconds:.0f} s"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"fails": self.ending()}

    def ending(self) -> str:
        """How its process ended."""
        return f"its process ended with exit status {self.process.wait()}"

    def bind(self, cores: set[int]) -> None:
        """Let all its threads run on these processors only."""
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)

    def stop(self) -> None:
        """End the process."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(load: Workload, names: list[str], place: Place, rounds: int, memory: float) -> dict[str, Worker]:
    """Measure candidates against the base, in groups that fit into memory together.

    Args:
        load: What is run.
        names: The candidates; the base is measured with each group.
        place: Where things are.
        rounds: How often each is timed.
        memory: Bytes that the processes of a group may hold together.

    Returns:
        The workers by name; each has one row for every round and, in ``facts``, the times of the base beside them.
    """
    done: dict[str, Worker] = {}
    print(load, file=sys.stderr, flush=True)
    base = Worker.start(BASE, load, place).wait_until_ready()
    if not base.is_ready:
        message = f"The base fails on {load}: {base.facts}. See {base.log}"
        raise SystemExit(message)
    waiting = [name for name in names if name != BASE]
    try:
        while waiting or BASE not in done:
            group = prepare_group(waiting, load, place, memory - base.facts["memory"])
            waiting = waiting[len(group) :]
            ready = [worker for worker in group if worker.is_ready]
            if ready or BASE not in done:
                base.rows = []
                run_rounds([base, *ready], load, place, rounds)
            for worker in [base, *group]:
                worker.facts["base"] = list(base.rows)
                done.setdefault(worker.name, worker)
            done[BASE] = base
            for worker in group:
                worker.stop()
    finally:
        base.stop()
    return done


def prepare_group(names: list[str], load: Workload, place: Place, memory: float) -> list[Worker]:
    """Start as many candidates as fit, two at a time, since preparing is not timed against anything."""
    group: list[Worker] = []
    held = 0.0
    for index in range(0, len(names), 2):
        pair = [Worker.start(name, load, place) for name in names[index : index + 2]]
        with ThreadPoolExecutor(2) as pool:
            group += pool.map(Worker.wait_until_ready, pair)
        held = sum(worker.facts["memory"] for worker in group if worker.is_ready)
        if held > memory:
            break
    return group


def run_rounds(workers: list[Worker], load: Workload, place: Place, rounds: int) -> None:
    if load.threads == 1:
        for worker in workers:
            worker.bind({place.core})
        time.sleep(0.1)
    for number in range(rounds):
        turn = number % len(workers)
        for worker in [*workers[turn:], *workers[:turn]]:
            if worker.is_ready:
                worker.ask(math.ceil(BLOCK_SECONDS / worker.facts["once"]))
