"""Scripts that were written for Intel Neural Compressor run as they are, each in a process of its own.

A script of this folder is one more line in `SCRIPTS`: its file, its arguments, and the last line that it prints.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).with_name("scripts")

SCRIPTS = [
    ("post_training.py", [], "int8: ['conv', 'linear']"),
    ("pythonic_assignment.py", [], "post_training_dynamic_quant 0.5 [8, 32]"),
    ("quantization_aware.py", [], "bits: [8, 8]"),
    ("pruning.py", [], "zeros: {'layer1.0.weight': 0.75, 'layer2.0.weight': 0.5, 'head.weight': 0.0}"),
    ("distillation.py", [], "nearer to the teacher: True\nunchanged: True"),
    ("orchestration.py", [], "zeros: 0.9"),
    ("mixed_precision.py", [], "bits: [16, 16] torch.float32"),
    ("benchmark.py", [], "timed: None 1 8"),
    ("metric_and_model.py", ["one", "two words"], "['one', 'two words'] __main__ 1.0 [8, 8]"),
    ("hugging_face.py", [], "equal: True"),
    ("unit_tests.py", [], ""),
]


def run(words, folder, code=0):
    """Run ``python -m inc_torch.compat`` in a folder; returns what it printed, and what to standard error."""
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "inc_torch.compat", *map(os.fspath, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(("script", "arguments", "told"), SCRIPTS, ids=[script for script, *_ in SCRIPTS])
def test_a_script_runs_as_it_is(script, arguments, told, tmp_path):
    printed, _ = run([FOLDER / script, *arguments], tmp_path)
    assert printed.rstrip().endswith(told)


def test_every_script_is_run():
    assert {script for script, *_ in SCRIPTS} == {path.name for path in FOLDER.glob("*.py")}


def test_what_is_forgiven_is_told_once(tmp_path):
    _, warned = run([FOLDER / "pythonic_assignment.py"], tmp_path)
    assert warned.count("InexactWarning") == 4
    assert "WeightPruningConfig has no option 'keep_mask_layers', which is dropped. Options: " in warned
    assert "Make a changed copy: config = config.replace(approach='dynamic')." in warned


def test_the_tests_of_a_file_are_all_run(tmp_path):
    _, told = run([FOLDER / "unit_tests.py"], tmp_path)
    assert "Ran 5 tests in" in told
    assert told.rstrip().endswith("OK")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "beside.py").write_text("import neural_compressor as nc\nimport sys\n\ndef say(): print(nc.__name__)\n")
    (tmp_path / "script.py").write_text("import sys, beside\nbeside.say()\nprint(sys.argv)\nsys.exit(7)\n")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


class TestRunner:
    def test_arguments_neighbours_and_the_exit_code(self, folder):
        printed, _ = run(["../script.py", "--replace", "-m"], folder / "elsewhere", code=7)
        assert printed == "inc_torch\n['../script.py', '--replace', '-m']\n"

    def test_a_module(self, folder):
        printed, _ = run(["-m", "script", "x"], folder, code=7)
        assert printed.startswith("inc_torch\n[")
        assert printed.endswith("script.py', 'x']\n")

    @pytest.mark.parametrize(
        ("words", "code", "told"),
        [
            ([], 2, "Usage: python -m inc_torch.compat [--replace] script.py [arguments]"),
            (["--help"], 0, "Run a script that imports neural_compressor by inc_torch"),
            (["gone.py"], 2, "'gone.py' does not exist (it is seen from"),
        ],
    )
    def test_what_is_wrong_is_told(self, folder, words, code, told):
        assert told in run(words, folder, code)[1]

    def test_the_real_one_is_replaced_only_if_that_is_asked_for(self, folder):
        (folder / "neural_compressor").mkdir()
        (folder / "neural_compressor" / "__init__.py").touch()
        _, told = run(["-m", "script"], folder, code=2)
        assert "Intel Neural Compressor itself is installed" in told
        assert "inc_torch.compat.install(replace=True)" in told
        assert run(["--replace", "-m", "script"], folder, code=7)[0].startswith("inc_torch\n")
