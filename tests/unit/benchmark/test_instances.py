"""Processes: bound, started together, and gone afterwards, whatever happens in them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from inc_torch.benchmark._cores import Placement, allowed_cpus
from inc_torch.benchmark._processes import run_forked, run_here

CPUS = tuple(sorted(allowed_cpus()))
ROOT = Path(__file__).resolve().parents[3]


def placements(count, threads=1):
    return [Placement(index, (CPUS[index % len(CPUS)],), threads) for index in range(count)]


def children_of(pid: int) -> set[int]:
    """All processes below ``pid``, zombies included."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(text.split()[0])] = int(text.rpartition(")")[2].split()[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def test_each_runs_on_its_own_cpu_in_all_its_threads():
    def look(placement, rendezvous):
        torch.ones(300, 300) @ torch.ones(300, 300)
        return {"affinity": sorted(os.sched_getaffinity(0)), "pid": os.getpid()}

    before = os.sched_getaffinity(0)
    outcomes = run_forked(placements(2, threads=2), look)
    for outcome in outcomes:
        assert outcome.found["affinity"] == outcome.found["cpus"] == list(outcome.placement.cpus)
        assert outcome.found["threads"] == 2
    assert len({os.getpid(), *(outcome.found["pid"] for outcome in outcomes)}) == 3
    assert os.sched_getaffinity(0) == before


def test_a_fork_computes_after_its_parent_has_used_all_threads():
    """The OpenMP of GCC would wait for ever for the threads of the parent."""
    program = (
        "import torch\n"
        "from inc_torch.benchmark._cores import Placement\n"
        "from inc_torch.benchmark._processes import run_forked\n"
        "torch.set_num_threads(2)\n"
        "a = torch.ones(600, 600)\n"
        "def work(placement, rendezvous):\n"
        "    for _ in range(3): (a @ a).sin().sum()\n"
        "    return {'sum': float((a @ a).sum())}\n"
        "work(None, None)\n"
        "print(run_forked([Placement(0, (), 2)], work)[0].found['sum'])\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout, result.stderr) == (f"{600.0**3}\n", "")


def test_all_begin_when_the_last_is_ready():
    def wait(placement, rendezvous):
        time.sleep(0.3 * placement.index)
        ready = time.monotonic()
        rendezvous()
        return {"ready": ready, "begun": time.monotonic()}

    found = [outcome.found for outcome in run_forked(placements(3), wait)]
    assert min(one["begun"] for one in found) >= max(one["ready"] for one in found)


def test_the_trace_of_one_that_fails_is_told_and_the_rest_finish():
    def fail(placement, rendezvous):
        if placement.index == 0:
            raise ValueError("the first one breaks")
        rendezvous()
        return {"value": placement.index}

    broken, whole = run_forked(placements(2), fail)
    assert broken.found is None
    assert broken.failure.splitlines()[0] == broken.failure.splitlines()[-1] == "ValueError: the first one breaks"
    assert "test_instances.py" in broken.failure
    assert whole.found["value"] == 1
    assert whole.failure is None


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            "The process was ended by SIGKILL, as the system does when memory",
        ),
        (lambda: os._exit(7), "The process ended with exit code 7 before it told a result."),
        (lambda: sys.exit(3), "SystemExit: 3"),
    ],
)
def test_one_that_dies_is_told_of(end, told):
    def die(placement, rendezvous):
        if placement.index == 0:
            end()
        rendezvous()
        return {"value": 1}

    dead, alive = run_forked(placements(2), die)
    assert dead.found is None
    assert told in dead.failure
    assert alive.found["value"] == 1


def test_a_fault_in_compiled_code_leaves_the_trace_of_python():
    def fault(placement, rendezvous):
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(10)
        return {}

    (outcome,) = run_forked(placements(1), fault)
    assert outcome.failure.startswith("The process was ended by SIGSEGV.")
    assert "in fault" in outcome.failure


def test_here_a_failure_is_told_in_the_same_way():
    def fail(placement, rendezvous):
        raise ValueError("broken")

    assert run_here(placements(1)[0], fail).failure.endswith("ValueError: broken\n")


def test_an_end_of_the_pipe_that_another_fork_holds_does_not_hide_a_death(monkeypatch):
    """A process forked elsewhere in the moment of the start inherits the pipe, which then never ends."""
    held = []
    context = type(multiprocessing.get_context("fork"))
    pipe = context.Pipe

    def keeping(self, *args, **kwargs):
        ends = pipe(self, *args, **kwargs)
        held.append(os.dup(ends[1].fileno()))
        return ends

    monkeypatch.setattr(context, "Pipe", keeping)
    (outcome,) = run_forked(placements(1), lambda placement, rendezvous: os._exit(5))
    for end in held:
        os.close(end)
    assert "exit code 5" in outcome.failure


def test_it_works_from_another_thread():
    found = []
    thread = threading.Thread(target=lambda: found.extend(run_forked(placements(2), lambda *_: {"value": 1})))
    thread.start()
    thread.join(30)
    assert [outcome.found["value"] for outcome in found] == [1, 1]


INTERRUPTED = """
import os, sys, time
import torch
from inc_torch.benchmark._cores import Placement
from inc_torch.benchmark._processes import run_forked
from torch.utils.data import DataLoader

def sleep(placement, rendezvous):
    if sys.argv[1] == "stays":
        loader = iter(DataLoader(list(range(9)), num_workers=1))
        next(loader)
    rendezvous()
    os.write(1, b"running\\n")  # at once, as two processes write
    time.sleep(60)

try:
    run_forked([Placement(0, (), 1), Placement(1, (), 1)], sleep)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    time.sleep(60)
"""


def started(tmp_path, *words):
    """Start the program above, and return it with its children when all are there."""
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert [process.stdout.readline() for _ in range(2)] == ["running\n"] * 2
    return process, children_of(process.pid)


def gone(pids, seconds=15.0):
    """Wait until none of the processes is there."""
    until = time.monotonic() + seconds
    while (left := {pid for pid in pids if Path(f"/proc/{pid}").exists()}) and time.monotonic() < until:
        time.sleep(0.05)
    return not left


def test_after_ctrl_c_no_process_is_left(tmp_path):
    process, children = started(tmp_path, "stays")
    assert len(children) >= 4  # two instances, and a worker of a loader in each
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert gone(children, seconds=2)  # sooner than workers of a loader look whether they are still wanted
    assert not children_of(process.pid)
    process.kill()
    process.communicate()


def test_after_the_parent_was_killed_no_process_is_left(tmp_path):
    process, children = started(tmp_path, "ends")
    process.kill()
    process.communicate()
    assert gone(children)


def repeat(count):
    model = nn.Linear(64, 64)

    def work(placement, rendezvous):
        rendezvous()
        return {"value": float(model(torch.ones(1, 64)).sum())}

    run_forked(placements(2), work)
    others = children_of(os.getpid())  # of other tests
    files, memory = len(list(Path("/proc/self/fd").iterdir())), resident()
    for _ in range(count):
        run_forked(placements(2), work)
    assert not multiprocessing.active_children()
    assert children_of(os.getpid()) <= others
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert resident() - memory < 8e6


def resident() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_twenty_calls_leave_nothing_behind():
    repeat(20)


@pytest.mark.slow
def test_a_hundred_calls_leave_nothing_behind():
    repeat(100)
