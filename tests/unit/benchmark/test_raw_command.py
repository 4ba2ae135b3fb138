"""Commands that are run in bound copies, and whose lines are read."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from inc_torch import BenchmarkConfig
from inc_torch.benchmark import _raw_command, benchmark_with_raw_cmd
from inc_torch.benchmark._cores import Placement
from inc_torch.core.errors import ConfigError, ConfigTypeError

LINES = "print('Batch size = 4'); print('Latency: 2.500 ms'); print('Throughput: 400.000 images/sec')"


def python(program):
    return f'{sys.executable} -c "{program}"'


def test_copies_are_bound_and_summed_up(tmp_path, capfd):
    program = (
        "import os, sys; a = os.sched_getaffinity(0); "
        f"open('{tmp_path}/' + str(min(a)), 'w').write(str(len(a)) + os.environ['OMP_NUM_THREADS']); {LINES}"
    )
    before = os.sched_getaffinity(0), dict(os.environ)
    found = benchmark_with_raw_cmd(python(program), BenchmarkConfig(num_of_instance=2, cores_per_instance=1))
    assert found == {"latency": 0.0025, "throughput": 800.0, "instances": 2.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2]]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"11"}
    assert before == (os.sched_getaffinity(0), dict(os.environ))
    printed = capfd.readouterr().out
    assert "| Latency average [second/sample]       | 0.002500     |" in printed
    assert "| Throughput sum [samples/second]       | 800.000      |" in printed


def test_on_several_nodes_numactl_binds_memory_too(monkeypatch):
    monkeypatch.setattr(_raw_command.shutil, "which", lambda name: f"/bin/{name}")
    placement = Placement(0, (2, 3), 2, spans_nodes=True)
    assert _raw_command._bound("run", placement) == [
        *("numactl", "--localalloc", "--physcpubind=2,3"),
        *("sh", "-c", "run"),
    ]
    monkeypatch.setattr(_raw_command.shutil, "which", lambda name: None)
    assert _raw_command._bound("run", placement)[0] == sys.executable


def test_a_copy_that_fails_is_told_with_what_it_printed():
    with pytest.raises(
        ConfigError, match=r"ended with exit code 3: expected 0\. What it printed ends with: 'it broke\\n'"
    ):
        benchmark_with_raw_cmd("echo it broke; exit 3")


def test_missing_lines_are_an_error():
    with pytest.raises(ConfigError, match="1 of 1 copies of 'echo hello' printed no line 'Latency: x ms' or no line"):
        benchmark_with_raw_cmd("echo hello")


@pytest.mark.parametrize("command", ["", "  ", 5, ["ls"]])
def test_what_is_no_command_is_refused(command):
    with pytest.raises(ConfigTypeError, match="expected a command for the shell"):
        benchmark_with_raw_cmd(command)


def test_no_copy_is_left_when_it_is_interrupted(monkeypatch):
    started = []
    popen = subprocess.Popen

    class Interrupting(popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

        def wait(self, timeout=None):
            if self is started[0] and not getattr(self, "asked", False):
                self.asked = True
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(_raw_command.subprocess, "Popen", Interrupting)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        benchmark_with_raw_cmd("sleep 60", BenchmarkConfig(num_of_instance=2))
    assert time.monotonic() - began < 20
    assert [process.poll() for process in started] == [-9, -9]
