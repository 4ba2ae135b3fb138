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
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.int8_peers.candidates import BASE, CANDIDATES

ROOT = Path(__file__).resolve().parents[2]
PREPARE_SECONDS = 1200  # compiling a decoder takes minutes, on a busy machine many
AT_A_TIME = 2  # that are prepared
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
class Outcome:
    """What was measured of a candidate on a workload.

    Attributes:
        candidate: Its name.
        facts: What it said of its preparation, or why there is nothing to say.
        rows: Its times, one entry a round.
        base: The times of float32 in the same rounds.
    """

    candidate: str
    facts: dict[str, Any]
    rows: list[dict[str, float]]
    base: list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are.

    Attributes:
        pythons: The interpreter of each environment.
        output: The folder for material, scratch files and logs.
        core: The processor that single threads are bound to.
        cores: Those that more threads run on.
    """

    pythons: dict[str, Path]
    output: Path
    core: int
    cores: frozenset[int] = frozenset(os.sched_getaffinity(0))

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
        """Return the variables of a worker: its first threads, and memory that is kept when freed, as servers keep it.

        Bytecode and what Inductor compiled stay in the folder of output: reading the sources of torch and transformers
        anew takes longer than preparing most models.
        """
        wanted = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(self.output / "bytecode"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.output / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # each would be a process that imports torch
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
    threads: int = 0

    @classmethod
    def start(cls, name: str, load: Workload, place: Place) -> Worker:
        """Start a candidate's process."""
        python = place.pythons[CANDIDATES[name].environment]
        log = place.output / "logs" / f"{name}-{load.model}-{load.batch}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(python), "-m", "benchmarks.int8_peers.worker", name, load.model]
        command += [str(load.batch), str(place.material), str(place.scratch(name, load))]
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

    def prepare(self, load: Workload, place: Place) -> Worker:
        """Let it prepare for a number of threads and wait until it has, and end it if that failed."""
        start = time.monotonic()
        # Libraries bind threads that they make by the processors that they may use, so those come first.
        self.bind(place.cores)
        self.rows, self.threads = [], load.threads
        self.facts = self.ask(threads=load.threads)
        if not self.is_ready:
            self.stop()
        said = "ready" if self.is_ready else self.facts
        print(f"  {self.name}: {said} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        return self

    @property
    def is_ready(self) -> bool:
        """Whether it can be timed."""
        return "cosine" in self.facts

    def run(self, repeats: int) -> None:
        """Let it run and keep what it says."""
        answer = self.ask(repeats=repeats)
        if "fails" in answer:
            self.facts = answer
            self.stop()
        else:
            self.rows.append(answer)

    def ask(self, **request: int) -> dict[str, Any]:
        """Send one line and return what it answers, or why it does not."""
        assert self.process.stdin is not None  # noqa: S101
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return {"fails": self.ending()}
        return self.answer(PREPARE_SECONDS)

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

    def bind(self, cores: Collection[int]) -> None:
        """Let all its threads run on these processors only."""
        for thread in Path(f"/proc/{self.process.pid}/task").glob("*"):
            with contextlib.suppress(ProcessLookupError):  # it may just have ended
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


def measure(loads: list[Workload], names: list[str], place: Place, rounds: int, memory: float) -> list[list[Outcome]]:
    """Measure candidates against the base, in groups that fit into memory together.

    Args:
        loads: What is run: one model and batch size, with one number of threads after the other.
        names: The candidates; the base is measured with each group.
        place: Where things are.
        rounds: How often each is timed.
        memory: Bytes that the processes of a group may hold together.

    Returns:
        For each workload the outcomes, the base first, then in the order of the names.
    """
    done: list[list[Outcome]] = [[] for _ in loads]
    base = Worker.start(BASE, loads[0], place)
    waiting = [name for name in names if name != BASE]
    try:
        while waiting or not done[0]:
            group = [prepared_base(base, loads[0], place)]
            group += prepare_group(waiting, loads[0], place, memory - base.facts["memory"])
            waiting = waiting[len(group) - 1 :]
            for load, outcomes in zip(loads, done, strict=True):
                measured = measure_group(group, load, place, rounds)
                outcomes += measured[1:] if outcomes else measured
            for worker in group[1:]:
                worker.stop()
    finally:
        base.stop()
    return done


def prepared_base(base: Worker, load: Workload, place: Place) -> Worker:
    """Prepare float32, without which there is nothing to compare with."""
    print(load, file=sys.stderr, flush=True)
    if not base.prepare(load, place).is_ready:
        message = f"The base fails on {load}: {base.facts}. See {base.log}"
        raise SystemExit(message)
    return base


def prepare_group(names: list[str], load: Workload, place: Place, memory: float) -> list[Worker]:
    """Start as many candidates as fit, and prepare them."""
    group: list[Worker] = []
    for index in range(0, len(names), AT_A_TIME):
        group += prepare_together(
            [Worker.start(name, load, place) for name in names[index : index + AT_A_TIME]], load, place
        )
        if sum(worker.facts["memory"] for worker in group if worker.is_ready) > memory:
            break
    return group


def prepare_together(workers: list[Worker], load: Workload, place: Place) -> list[Worker]:
    """Prepare some at a time, since preparing is not timed against anything."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(lambda worker: worker.prepare(load, place), workers))


def measure_group(group: list[Worker], load: Workload, place: Place, rounds: int) -> list[Outcome]:
    """Measure workers, of which the base is the first; they were prepared for this number of threads or another."""
    base, ready = group[0], [worker for worker in group if worker.is_ready]
    if any(worker.threads != load.threads for worker in ready):
        prepared_base(base, load, place)
        prepare_together([worker for worker in ready if worker is not base], load, place)
    run_rounds([worker for worker in ready if worker.is_ready], load, place, rounds)
    return [Outcome(worker.name, worker.facts, worker.rows, base.rows) for worker in group]


def run_rounds(workers: list[Worker], load: Workload, place: Place, rounds: int) -> None:
    if load.threads == 1:
        for worker in workers:
            worker.bind({place.core})
        time.sleep(0.1)
    for number in range(rounds):
        turn = number % len(workers)
        for worker in [*workers[turn:], *workers[:turn]]:
            if worker.is_ready:
                worker.run(math.ceil(BLOCK_SECONDS / worker.facts["once"]))
