"""Searches in several processes: killed at any moment they lose nothing, and together they do nothing twice."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from inc_torch.tuning import _search, _study
from inc_torch.tuning._search import Limits
from tests.unit.tuning.searching import (
    JournalFileOpenLock,
    forking,
    listed,
    measured,
    named,
    opened,
    ran,
    started,
    tell_name,
    work,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
FILES = ["own.db", "own.journal"]


@pytest.fixture(autouse=True)
def _polls_often(monkeypatch):
    monkeypatch.setattr(_search, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(_study, "_TAKING_SECONDS", 1.0)
    monkeypatch.setattr(JournalFileOpenLock.__init__, "__defaults__", (3,))


@pytest.fixture(scope="module")
def server():
    """A PostgreSQL server of the package pgserver, without its own starter: as root that adds a user to the system."""
    pytest.importorskip("psycopg")
    found = importlib.util.find_spec("pgserver")
    if found is None or not found.submodule_search_locations:
        pytest.skip("pgserver is not installed")
    programs = Path(found.submodule_search_locations[0]) / "pginstall" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # the path of its socket has to be short
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    if user is not None:
        shutil.chown(folder, user)
    make = [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "-E", "utf8", "--no-sync"]
    subprocess.run(make, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
    command = [programs / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([programs / "pg_isready", "-q", "-h", folder], check=False).returncode:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield folder, programs
    finally:
        process.send_signal(signal.SIGINT)  # without waiting for its clients
        process.wait(60)
        shutil.rmtree(folder)


@pytest.fixture
def database(server, request):
    """The URL of an empty database."""
    folder, programs = server
    name = f"test{abs(hash(request.node.nodeid))}"
    subprocess.run([programs / "createdb", "-h", folder, "-U", "postgres", name], check=True)
    return f"postgresql://postgres@/{name}?host={folder}"


@pytest.fixture
def where(request, tmp_path):
    """A file by name, or ``"postgresql"``."""
    return request.getfixturevalue("database") if request.param == "postgresql" else str(tmp_path / request.param)


def finished(process, seconds: float = 60) -> int | None:
    process.join(seconds)
    return process.exitcode


# ---------------------------------------------------------------------------- names


def test_a_search_has_the_same_name_in_another_process():
    context = forking()
    queue, about = context.SimpleQueue(), {"config": {"a": [1, 2.5]}, "operations": "ab12"}
    process = context.Process(target=tell_name, args=(queue, about))
    with started(process):
        assert queue.get() == opened(None, **about).name


# ---------------------------------------------------------------------------- killed


def killed_at(context, where: str, strategy: str, most: int, write: int, when: str) -> bool:
    """Whether a worker came to that write, and died of it."""
    process = context.Process(target=work, args=(where, strategy, most), kwargs={"dies": (write, when)})
    with started(process):
        code = finished(process)
    assert code in (0, -9)
    return code == -9


WHEN = {"own.db": ["before", "after"], "own.journal": ["before", "within"]}


ONE_TRIAL = (1, 2, 3, 4, 5, 6, 13, 14, 15, 19, 21, 22)
"""Writes that make a study, put a trial down, take it, say what was found, and end it."""


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("own.journal", ONE_TRIAL),
        pytest.param("own.journal", range(1, 200), marks=pytest.mark.slow),
        pytest.param("own.db", range(1, 200), marks=pytest.mark.slow),
    ],
)
def test_a_search_killed_at_any_write_ends_as_the_uncut_one(tmp_path, name, writes):
    context = forking()
    for strategy, when in zip(["basic", "tpe"], WHEN[name], strict=True):
        uncut, killed = ran(None, strategy, Limits(4)).trials, 0
        for write in writes:
            where = str(tmp_path / strategy / str(write) / name)
            if not killed_at(context, where, strategy, 4, write, when):
                break
            killed += 1
            assert ran(where, strategy, Limits(4)).trials == uncut, (strategy, write, when)
        assert killed >= len(ONE_TRIAL)


def ends_after_kills(where: str, strategy: str, most: int, seed: int, *, kills: int, seconds: float) -> int:
    """Let a worker be killed at random moments until one comes to its end; how many were."""
    context, chance = forking(), random.Random(seed)
    uncut = ran(None, strategy, Limits(most)).trials
    for count in range(500):
        process = context.Process(target=work, args=(where, strategy, most), kwargs={"seconds": seconds})
        with started(process):
            patience = 60.0 if count >= kills else chance.uniform(0.02, 0.1 + 0.04 * count)
            if finished(process, patience) is not None:
                assert process.exitcode == 0
                break
    assert listed(opened(where, strategy=strategy, must_exist=True)) == uncut
    return count


def test_a_search_killed_at_random_moments_ends_as_the_uncut_one(tmp_path):
    assert ends_after_kills(str(tmp_path), "basic", 9, 1, kills=4, seconds=0.03) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", ["basic", "mse", "exhaustive", "random", "tpe"])
@pytest.mark.parametrize("where", [*FILES, "postgresql"], indirect=True)
def test_any_search_killed_at_random_moments_ends_as_the_uncut_one(where, strategy, seed):
    assert ends_after_kills(where, strategy, 16, seed, kills=40, seconds=0.03) >= 2


# ---------------------------------------------------------------------------- together


def shared(where: str, log: Path, strategy: str, most: int, *, kill: int = 0, seed: int = 0) -> Counter[str]:
    """Let three workers share a search, and kill some of them at random; how often each recipe was begun."""
    context, chance = forking(), random.Random(seed)
    gate = None if kill else context.Barrier(3)

    def worker():
        more = {"seconds": 0.05, "log": str(log), "gate": gate}
        return context.Process(target=work, args=(where, strategy, most), kwargs=more)

    workers = [worker() for _ in range(3)]
    with started(*workers):
        for _ in range(kill):
            time.sleep(chance.uniform(0.1, 0.8))
            place = chance.randrange(3)
            if workers[place].exitcode is None:
                workers[place].kill()
                workers[place].join()
                workers[place] = worker()
                workers[place].start()
        codes = [finished(process) for process in workers]
        assert codes == [0, 0, 0]
    return Counter(line.partition(" ")[2] for line in log.read_text().splitlines())


def slow(*values: object):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("where", "strategy"),
    [
        ("own.db", "basic"),
        slow("own.db", "tpe"),
        slow("own.journal", "basic"),
        ("own.journal", "tpe"),
        ("postgresql", "basic"),
        slow("postgresql", "tpe"),
    ],
    indirect=["where"],
)
def test_workers_try_nothing_twice_and_no_more_than_allowed(where, tmp_path, strategy):
    most = 1000 if strategy == "basic" else 14
    begun = shared(where, tmp_path / "log", strategy, most)
    trials = opened(where, strategy=strategy, must_exist=True).trials()
    assert set(begun.values()) == {1}
    assert [trial.state for trial in trials] == ["complete"] * len(trials)
    assert Counter(named(trial.recipe) for trial in trials) == begun
    if strategy == "basic":
        assert sorted(begun) == sorted(name for name, _ in ran(None, "basic").trials)
    else:
        assert len(trials) == 14
    assert len({line.partition(" ")[0] for line in (tmp_path / "log").read_text().splitlines()}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", ["basic", "tpe"])
@pytest.mark.parametrize("where", [*FILES, "postgresql"], indirect=True)
def test_workers_that_are_killed_lose_nothing_to_the_others(where, tmp_path, strategy, seed):
    most = 1000 if strategy == "basic" else 20
    begun = shared(where, tmp_path / "log", strategy, most, kill=8, seed=seed)
    trials = listed(opened(where, strategy=strategy, must_exist=True))
    if strategy == "basic":
        assert sorted(trials) == sorted(ran(None, "basic").trials)
    else:
        assert len(trials) == 20
    assert len({name for name, _ in trials}) == len(trials)
    assert set(begun) >= {name for name, _ in trials}
    assert sum(begun.values()) - len(trials) <= 8  # what was begun again is what was killed


def begun_by(log: Path) -> None:
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("where", "host"),
    [
        ("own.db", None),
        slow("own.db", "another machine"),
        slow("own.journal", None),
        ("own.journal", "another machine"),
        slow("postgresql", None),
        ("postgresql", "another machine"),
    ],
    indirect=["where"],
)
def test_the_trial_of_a_killed_worker_is_tried_by_another(where, tmp_path, monkeypatch, host):
    """A process of this machine is looked for; of another one nothing is heard any more."""
    monkeypatch.setattr(_study, "HEARTBEAT_SECONDS", 0.1 if host else 1000.0)
    log, calls = tmp_path / "log", []
    more = {"seconds": 600.0, "log": str(log), "host": host, "heartbeat": 0.1}
    process = forking().Process(target=work, args=(where, "basic"), kwargs=more)

    def measure(recipe):
        calls.append(named(recipe))
        if len(calls) == 1:
            process.kill()
            process.join()
        return measured(recipe)

    with started(process):
        begun_by(log)
        result = ran(where, "basic", measure=measure)
    expected = ran(None, "basic").trials
    assert sorted(result.trials) == sorted(expected)
    assert calls[0] == expected[1][0]
    assert Counter(calls) == Counter(name for name, _ in expected)


@pytest.mark.parametrize("where", ["own.journal", slow("postgresql")], indirect=True)
def test_the_trial_of_a_worker_that_takes_long_is_left_to_it(where, tmp_path, monkeypatch):
    monkeypatch.setattr(_study, "HEARTBEAT_SECONDS", 0.3)
    log, calls = tmp_path / "log", []
    more = {"seconds": 2.5, "log": str(log), "host": "another machine", "heartbeat": 0.1}
    process = forking().Process(target=work, args=(where, "basic", 1), kwargs=more)
    with started(process):
        begun_by(log)
        result = ran(where, "basic", measure=lambda recipe: calls.append(named(recipe)) or measured(recipe))
        assert finished(process) == 0
    expected = ran(None, "basic").trials
    assert result.trials == expected
    assert calls == [name for name, _ in expected[1:]]


@pytest.mark.parametrize("where", ["own.db", slow("own.journal")], indirect=True)
def test_workers_that_open_a_new_file_at_a_time_all_open_it(where):
    context = forking()
    workers = [context.Process(target=work, args=(where, "basic", 1)) for _ in range(5)]
    with started(*workers):
        assert [finished(process) for process in workers] == [0] * 5
    assert len(opened(where).trials()) == 1
