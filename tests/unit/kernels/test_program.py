"""Steps, programs, threads, and what happens where kernels cannot be built."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import stat
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from inc_torch import kernels
from inc_torch.kernels import Grid, KernelsUnavailableError, OperandError, Program, _build, _library
from inc_torch.kernels._arguments import STRUCTURES
from tests.unit.kernels.needed import codes, needs_processor


@pytest.fixture
def forgetful():
    """Look for the library again, before the test and after it."""
    _library._loaded.cache_clear()
    yield
    _library._loaded.cache_clear()


@needs_processor
def test_this_processor_runs_the_kernels():
    assert kernels.available(), kernels.reason()
    assert kernels.reason() is None
    kernels.require()


@needs_processor
def test_arguments_have_the_same_size_in_both_languages():
    library = _library.library()
    for operation, structure in STRUCTURES.items():
        assert library.inc_size_of_arguments(operation) == ctypes.sizeof(structure)
    assert library.inc_size_of_arguments(len(STRUCTURES)) == -1


@needs_processor
def test_there_is_one_runtime_of_threads_in_the_process():
    kernels.require()
    files = set(re.findall(r"\S*libgomp\S*", Path("/proc/self/maps").read_text()))
    assert len(files) == 1, files


@needs_processor
def test_threads_are_those_that_torch_was_given():
    kernels.require()
    runtime = ctypes.CDLL("libgomp.so.1")
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert runtime.omp_get_max_threads() == count
    finally:
        torch.set_num_threads(before)


@needs_processor
def test_steps_are_counted_by_kind_while_somebody_counts():
    grid, values = Grid(0.5, 3), torch.rand(4, 8)
    middle, output = torch.empty(4, 8, dtype=torch.uint8), torch.empty(4, 8)
    program = Program([kernels.quantize(values, middle, grid), kernels.dequantize(middle, grid, output)])
    program.run()
    with kernels.counting_steps() as outer:
        program.run()
        with kernels.counting_steps() as inner:
            program.run()
        program.run()
    program.run()
    assert dict(outer) == {"quantize": 3, "dequantize": 3}
    assert dict(inner) == {"quantize": 1, "dequantize": 1}


@needs_processor
def test_steps_run_in_order_and_keep_their_operands_alive():
    values = torch.randn(4, 6)
    middle, output = codes(4, 6), torch.empty(4, 6)
    kept = weakref.ref(middle)
    grid = Grid(0.125, 128)
    program = Program([kernels.quantize(values, middle, grid), kernels.dequantize(middle, grid, output)])
    del middle
    gc.collect()
    assert kept() is not None
    program.run()
    assert torch.equal(output, (values / 0.125).round().clamp(-128, 127) * 0.125)
    values.zero_()
    program.run()
    assert not output.any()


@needs_processor
def test_a_program_without_steps_can_be_run():
    program = Program([])
    program.run()
    assert program.steps == ()


@needs_processor
def test_rebinding_names_the_roles_there_are():
    step = kernels.quantize(torch.randn(4, 6), codes(4, 6), Grid(1.0, 0))
    assert step.roles == ("input", "output")
    assert repr(step) == "Step(quantize: input, output)"
    with pytest.raises(
        OperandError, match=r"no operand 'inputs', expected one of input, output\. Did you mean 'input'"
    ):
        step.rebind("inputs", 0)
    with pytest.raises(OperandError, match="no operand 'dynamic'"):
        step.rebind("dynamic", 0)


@needs_processor
def test_joined_steps_are_bound_as_one():
    parts = [torch.full((3,), value, dtype=torch.uint8) for value in (1, 2)]
    output, meaning = torch.zeros(6, dtype=torch.uint8), kernels.Grid(1.0, 0)
    steps = [
        kernels.requantize(part, meaning, place, meaning) for part, place in zip(parts, output.split(3), strict=True)
    ]
    written = [(step, "output", 3 * index) for index, step in enumerate(steps)]
    joined = kernels.JoinedStep("both", steps, {"second": [(steps[1], "input", 0)], "output": written})
    program = kernels.Program([kernels.JoinedStep("again", [joined], {})])
    program.run()
    assert output.tolist() == [1, 1, 1, 2, 2, 2]
    other, elsewhere = torch.full((3,), 5, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)
    joined.rebind("second", other.data_ptr())
    joined.rebind("output", elsewhere.data_ptr())
    program.run()
    assert elsewhere.tolist() == [1, 1, 1, 5, 5, 5]
    assert repr(joined) == "Step(both: second, output)"
    with pytest.raises(OperandError, match=r"expected one of second, output\. Did you mean 'output'"):
        joined.rebind("outputs", 0)


def test_the_switch_turns_the_kernels_off(monkeypatch):
    monkeypatch.setenv("INC_TORCH_KERNELS", "0")
    assert not kernels.available()
    assert kernels.reason() == "they are switched off by INC_TORCH_KERNELS=0"
    with pytest.raises(
        KernelsUnavailableError, match=r"cannot be used: they are switched off by INC_TORCH_KERNELS=0\."
    ):
        Program([])


@needs_processor
def test_the_switch_leaves_amx_out_and_refuses_other_words(monkeypatch, forgetful):
    monkeypatch.setenv("INC_TORCH_KERNELS", "avx512")
    assert kernels.available()
    assert not kernels.uses_tiles()
    monkeypatch.setenv("INC_TORCH_KERNELS", "avx51")
    assert kernels.reason() == "INC_TORCH_KERNELS is 'avx51', expected 0, 1 or avx512"
    assert not kernels.uses_tiles()
    monkeypatch.setenv("INC_TORCH_KERNELS", "1")
    _library._loaded.cache_clear()
    assert kernels.uses_tiles() is ("amx_int8" in _build._cpu_flags())


def test_a_processor_that_lacks_something_is_named(monkeypatch, forgetful):
    monkeypatch.setattr(_build, "_cpu_flags", lambda: frozenset(_build.NEEDED) - {"avx512_vnni"})
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(_build.platform, "machine", lambda: "x86_64")
    assert kernels.reason() == "the processor has no avx512_vnni"
    monkeypatch.setattr(_build.platform, "machine", lambda: "aarch64")
    assert _build.missing_features() == "the kernels are for Linux on x86-64, this is linux on aarch64"


def shim(folder, text):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_processor
def test_without_a_compiler_the_reason_says_what_was_looked_for(monkeypatch, tmp_path, forgetful):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert kernels.reason() == (
        "no C++ compiler was found, looked for c++, g++, clang++; install g++ or name one in CXX"
    )
    monkeypatch.setenv("CXX", "surely-missing")
    _library._loaded.cache_clear()
    assert "looked for surely-missing;" in kernels.reason()


@needs_processor
def test_the_last_lines_of_a_compiler_that_fails_are_in_the_reason(monkeypatch, tmp_path, forgetful):
    failing = shim(
        tmp_path, 'if [ "$1" = --version ]; then echo fake 1; else echo "source.cpp:1: no such luck" >&2; exit 3; fi'
    )
    monkeypatch.setenv("CXX", failing)
    monkeypatch.setenv("INC_TORCH_CACHE", str(tmp_path / "cache"))
    reason = kernels.reason()
    assert reason == f"the compiler {failing} failed with status 3:\nsource.cpp:1: no such luck"
    assert list((tmp_path / "cache").iterdir()) == []


@needs_processor
def test_a_library_that_is_none_is_a_reason(monkeypatch, tmp_path, forgetful):
    writing = 'for last; do :; done; echo nonsense > "$last"'
    monkeypatch.setenv("CXX", shim(tmp_path, f'[ "$1" = --version ] && echo fake 2 && exit; {writing}'))
    monkeypatch.setenv("INC_TORCH_CACHE", str(tmp_path / "cache"))
    assert kernels.reason().startswith("the compiled kernels could not be loaded: ")


@needs_processor
def test_a_second_build_is_found_in_the_cache_and_a_read_only_one_is_not_written(monkeypatch, tmp_path):
    count = tmp_path / "count"
    writing = f'echo x >> {count}; for last; do :; done; echo library > "$last"'
    monkeypatch.setenv("CXX", shim(tmp_path, f'[ "$1" = --version ] && echo fake 3 && exit; {writing}'))
    monkeypatch.setenv("INC_TORCH_CACHE", str(tmp_path / "cache"))
    first = _build.build()
    runs = len(count.read_text().split())
    assert first.parent == tmp_path / "cache"
    assert _build.build() == first
    assert len(count.read_text().split()) == runs
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.setenv("INC_TORCH_CACHE", str(blocked / "cache"))
    elsewhere = _build.build()
    assert elsewhere.is_file()
    assert elsewhere.name == first.name
    elsewhere.unlink()
    elsewhere.parent.rmdir()


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("INC_TORCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert _build.cache_directory() == Path.home() / ".cache" / "inc_torch"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert _build.cache_directory() == Path("/somewhere/inc_torch")
    monkeypatch.setenv("INC_TORCH_CACHE", "/elsewhere")
    assert _build.cache_directory() == Path("/elsewhere")


def test_importing_the_package_does_not_import_the_kernels():
    program = "import inc_torch, sys; sys.exit('inc_torch.kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, env=os.environ).returncode == 0
