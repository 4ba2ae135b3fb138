"""The lessons run as they stand, and print what their pages show, but for the digits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import markdown
from tests.docs.markdown import ROOT, Block

FOLDER = ROOT / "docs" / "tutorials"
COMMANDS = ("inc-torch ", "python ", "torchrun ", "OMP_NUM_THREADS=1 torchrun ")
"""What a page may tell a reader to type once the environment is there."""


def _blocks(page: Path) -> list[Block]:
    return list(markdown.blocks(page.read_text(encoding="utf-8")))


def _lesson(page: Path):
    slow = any("slow" in block.flags for block in _blocks(page))
    return pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if slow else [])


LESSONS = [_lesson(page) for page in sorted(FOLDER.glob("*.md")) if page.stem != "index"]


def _form(line: str) -> str:
    """A line without what differs between machines: digits, and how wide they make a column."""
    line = re.sub(r"\d+(\.\d+)?", "0", line)
    return " ".join(re.sub(r"([-─#])\1+", r"\1", line).split())


def _run(command: list[str], folder: Path) -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "examples"), "COLUMNS": "80"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _output(page: Path, folder: Path) -> str:
    """Save the page's files, type in its programs, then its commands, and return what was printed."""
    blocks = _blocks(page)
    for block in blocks:
        for name in block.flags - {"no-run", "slow"}:
            (folder / name).write_text(block.text, encoding="utf-8")
    output = ""
    programs = [markdown.padded(block) for block in blocks if block.is_run]
    if programs:
        runner = (
            "names = {'__name__': '__main__'}\n"
            f"for program in {programs!r}:\n"
            f"    exec(compile(program, {str(page)!r}, 'exec'), names)\n"
        )
        output += _run([sys.executable, "-c", runner], folder)
    for command in markdown.shell_commands(page.read_text(encoding="utf-8")):
        assert command.startswith(COMMANDS), command
        output += _run(["sh", "-c", command], folder)
    return output


@pytest.mark.parametrize("page", LESSONS)
def test_a_lesson_prints_what_its_page_shows(page, tmp_path):
    output = _output(page, tmp_path)
    printed = iter([_form(line) for line in output.splitlines()])
    for block in _blocks(page):
        if block.language in {"text", "diff"}:
            for line in block.text.splitlines():
                # Found after the line before it, or not at all.
                assert line == "..." or _form(line) in printed, f"{page.name} shows {line!r}, printed was:\n{output}"


def test_every_lesson_is_in_the_table_and_the_site():
    table = (FOLDER / "index.md").read_text(encoding="utf-8")
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for lesson in LESSONS:
        (page,) = lesson.values
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert f"[{title}]({page.name})" in table
        assert f"tutorials/{page.name}" in site


def test_every_lesson_shows_an_output_and_leads_on():
    for lesson in LESSONS:
        (page,) = lesson.values
        text = page.read_text(encoding="utf-8")
        assert any(block.language == "text" for block in _blocks(page)), page
        assert "\nAt the end you have" in text
        assert "\n## Try next\n" in text
        assert "\nMore: " in text
        assert "](../api/" in text


def test_digits_and_widths_are_left_out_of_a_comparison():
    assert _form("0   256x384  86.2%  ####") == _form("12 2x3  7%  ########")
    assert _form("accuracy: 0.75") != _form("loss: 0.75")
