"""The command ``inc-torch migrate``."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from inc_torch.cli import _migrate
from inc_torch.cli._app import app

OLD, NEW = "from neural_compressor import quantization\n", "from inc_torch import quantization\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*words):
    return CliRunner().invoke(app, ["migrate", *words])


def test_the_diff_is_printed_and_the_report_beside_it():
    Path("a.py").write_text(OLD)
    shown = run("a.py")
    assert shown.exit_code == 0
    assert shown.stdout == f"--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-{OLD}+{NEW}"
    assert shown.stderr == (
        "1 file read, 1 to change, 0 failed, 0 of other kinds skipped; 0 things for you to decide. "
        "Nothing was written; --write does.\n"
    )
    assert Path("a.py").read_text() == OLD


def test_write_writes_and_prints_no_diff():
    Path("a.py").write_text(OLD)
    shown = run("a.py", "--write")
    assert (shown.exit_code, shown.stdout) == (0, "")
    assert shown.stderr == ("1 file read, 1 changed, 0 failed, 0 of other kinds skipped; 0 things for you to decide.\n")
    assert Path("a.py").read_text() == NEW


def test_what_is_left_to_decide_is_told_and_is_an_exit_code_of_its_own():
    Path("a.py").write_text(f"{OLD}import neural_compressor.ux\n")
    shown = run("a.py", "--write")
    assert shown.exit_code == 3
    assert shown.stderr.startswith(
        "a.py:2  neural_compressor.ux\n"
        "    why    the graphical interface of INC is not replaced\n"
        "    to do  Leave it out; `inc-torch --help` lists commands. The import is left as it is until then.\n"
    )
    assert Path("a.py").read_text() == f"{NEW}import neural_compressor.ux\n"


def test_files_that_fail_are_worth_more_than_those_to_decide():
    Path("a.py").write_text("import neural_compressor.ux\n")
    Path("b.py").write_text("import neural_compressor\nprint 'x'\n")
    shown = run("a.py", "b.py", "gone.py")
    assert shown.exit_code == 1
    assert shown.stderr.splitlines()[0].startswith("b.py: line 2: ")
    assert shown.stderr.splitlines()[1] == "gone.py: No such file or directory"


def test_a_wrong_command_line():
    assert run().exit_code == 2
    assert run("a.py", "--wrte").exit_code == 2


def test_help_says_the_exit_codes():
    told = " ".join(run("--help").stdout.split())
    assert "0 if nothing is left to decide, 1 if a file could not be read, parsed or written, 2 if" in told
    assert "3 if something is left to decide." in told


def test_colours_are_for_terminals(monkeypatch, capsys):
    Path("a.py").write_text(OLD)
    monkeypatch.setattr(_migrate, "Console", lambda: Console(force_terminal=True, color_system="standard", width=20))
    _migrate._show_diffs(_migrate.migrate_paths(["a.py"]))
    shown = capsys.readouterr().out
    assert f"\x1b[32m+{NEW[:-1]}\x1b[0m\n" in shown  # on one line, however wide the terminal
    assert f"\x1b[31m-{OLD[:-1]}\x1b[0m\n" in shown


def test_a_missing_libcst_is_told_with_the_extra(monkeypatch):
    Path("a.py").write_text(OLD)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "libcst" else object())
    shown = run("a.py")
    assert shown.exit_code == 1
    assert shown.stderr.startswith("Error: Migrating a script needs the package 'libcst', which is not installed.")
    assert "pip install 'inc_torch[migrate]'" in shown.stderr
