"""The command ``inc-torch``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from inc_torch import PostTrainingQuantConfig, __version__, quantization

ROOT = Path(__file__).resolve().parents[3]


def test_a_model_is_measured_beside_another_and_files_are_written(models, run):
    shown = run(
        *("benchmark", "own_models.py:build", "--compare", "own_models:build", "--data", "own_models.py:loader"),
        *(
            "--metric",
            "topk",
            "--instances",
            "2",
            "--warmup",
            "1",
            "--json",
            "r.json",
            "--csv",
            "r.csv",
            "--svg",
            "r.svg",
        ),
    )
    assert shown.exit_code == 0, shown.output
    assert "Multiple Instance Benchmark Summary" in shown.output
    data = json.loads((models / "r.json").read_text())
    assert [len(instance["seconds"]) for instance in data["model"]["instances"]] == [8, 8]
    assert data["compared"]["accuracy"] == data["model"]["accuracy"] is not None
    assert (models / "r.csv").read_text().count("\n") == 5
    assert (models / "r.svg").read_text().startswith("<svg")


def test_a_saved_model_with_its_architecture(models, run):
    from importlib import import_module

    sys.path.insert(0, str(models))
    build = import_module("own_models").build
    quantization.fit(build().eval(), PostTrainingQuantConfig(), calib_dataloader=[torch.ones(4, 8)]).save("int8")
    shown = run("benchmark", "int8", "--architecture", "own_models:build", "--iteration", "8", "--diagnosis")
    assert shown.exit_code == 0, shown.output
    assert "2 Int8Linear" in shown.output
    assert "Profiling" in shown.output


def test_quiet_prints_nothing(models, run):
    assert run("benchmark", "own_models:build", "--iteration", "8", "--quiet").output == ""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (
            ["own_models:build_"],
            2,
            "MODEL got 'own_models:build_': 'own_models' has no 'build_'. Did you mean 'build'?",
        ),
        (["own_models:number"], 2, "MODEL got 'own_models:number', which gives int: expected a torch.nn.Module."),
        (["no_such_module:build"], 2, "there is no module 'no_such_module'. Install it, or name a file: file.py:name."),
        (["nowhere.py:build"], 2, "there is no such file"),
        (["own_models:build", "--instances", "900"], 2, "num_of_instance=900 needs 900 physical cores"),
        (["own_models:build", "--metric", "topk"], 2, "benchmark.fit got metric without b_dataloader"),
        (["own_models:build", "--warmup", "-3"], 2, "BenchmarkConfig.warmup=-3: expected a number of 0 or more."),
        (["own_models:build", "--instance", "2"], 2, "No such option: --instance"),
        (["nothing/here"], 1, "'nothing/here' does not exist"),
        (["own_models:Breaks", "--data", "own_models:data"], 1, "ArithmeticError: broken for good"),
    ],
)
def test_what_goes_wrong_is_a_line_and_a_code(models, words, code, told, run):
    shown = run("benchmark", *words)
    assert shown.exit_code == code
    assert told in " ".join(shown.output.split())
    assert "Traceback (most recent call last)" not in shown.output or code == 1


def test_bugs_of_the_users_function_keep_their_trace(models, run):
    shown = run("benchmark", "own_models:needs_more")
    assert isinstance(shown.exception, TypeError)
    assert shown.exception.__notes__ == ["While calling 'own_models:needs_more' of MODEL, without arguments."]


def test_an_instance_that_fails_is_a_failure_of_the_command(models, monkeypatch, run):
    from inc_torch.benchmark import BenchmarkResult, InstanceResult, ModelResult
    from inc_torch.cli import _benchmark

    half = ModelResult("m", (InstanceResult(0, (), 1, 1, (1.0,), 1), InstanceResult(1, failure="no")), 4)
    monkeypatch.setattr(_benchmark, "fit", lambda *_, **__: BenchmarkResult(half))
    assert run("benchmark", "own_models:build").exit_code == 1


def test_warnings_are_lines(models, run):
    shown = run("benchmark", "own_models:build", "--cores-per-instance", "900", "--clip", "--iteration", "8")
    assert shown.exit_code == 0
    assert "Warning: num_of_instance=1 with cores_per_instance=900 need 900 physical cores" in shown.output


def test_help_says_what_to_type(run):
    assert "benchmark" in run("--help").output
    shown = " ".join(run("benchmark", "--help").output.split())
    for words in ("inc-torch benchmark minilm-int8 --compare minilm", "--architecture", "--instances", "--svg"):
        assert words in shown
    assert run().exit_code == 2
    assert "benchmark" in run().output


def test_version(run):
    shown = run("--version")
    assert (shown.exit_code, shown.output) == (0, f"{__version__}\n")


def test_as_a_process_the_way_pip_installs_it(models):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    entry = importlib.metadata.EntryPoint("inc-torch", scripts["inc-torch"], "console_scripts")
    program = (
        f"import sys; sys.argv[0] = 'inc-torch'; from {entry.module} import {entry.attr}; sys.exit({entry.attr}())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", program, "benchmark", "own_models:build", "--iteration", "8"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Throughput:" in result.stdout
    wrong = [*command[:-3], "own_models:nothing"]
    result = subprocess.run(wrong, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: MODEL got 'own_models:nothing'")
