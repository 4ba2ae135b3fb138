"""What the pages say is true: their code runs, their names exist, their links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest

from tests.docs import markdown
from tests.docs.markdown import ROOT, Block


def _python_blocks(page) -> list[Block]:
    return [block for block in markdown.blocks(page.read_text(encoding="utf-8")) if block.language == "python"]


PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in markdown.pages()]
LESSONS = ROOT / "docs" / "tutorials"  # run by test_tutorials.py
PAGES_TO_RUN = [
    page
    for page in PAGES
    if page.values[0].parent != LESSONS and any(block.is_run for block in _python_blocks(page.values[0]))
]


def _imported_names(tree: ast.AST) -> list[tuple[str, str | None]]:
    """List what a program imports from the package, as (module, name)."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "inc_torch":
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names if alias.name.partition(".")[0] == "inc_torch"]
    return found


def test_the_first_two_commands_of_the_readme_are_all_a_user_needs():
    commands = markdown.shell_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert commands[:2] == ["make demo", "make test"]


def test_ci_runs_the_test_command_of_the_readme():
    commands = [line.strip() for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]
    assert "make test" in commands


def test_every_make_command_on_a_page_exists():
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    missing = [
        f"{page.name}: {command}"
        for page in markdown.pages()
        for command in markdown.shell_commands(page.read_text(encoding="utf-8"))
        if command.startswith("make ") and f"\n{command.split()[1]}:" not in targets
    ]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile_and_import_what_exists(page):
    for block in _python_blocks(page):
        for module, name in _imported_names(ast.parse(markdown.padded(block), filename=str(page))):
            owner = importlib.import_module(module)
            if name is not None and not hasattr(owner, name):
                importlib.import_module(f"{module}.{name}")  # a submodule, or an error that names it


@pytest.mark.parametrize("page", PAGES_TO_RUN)
def test_python_blocks_run(page, tmp_path):
    """Run the blocks of a page one after another, as a reader would who types them in."""
    programs = [markdown.padded(block) for block in _python_blocks(page) if block.is_run]
    runner = (
        "import sys\n"
        "names = {'__name__': '__main__'}\n"
        f"for program in {programs!r}:\n"
        f"    exec(compile(program, {str(page)!r}, 'exec'), names)\n"
    )
    command = [sys.executable, "-c", runner]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = markdown.local_links(page.read_text(encoding="utf-8"))
    dead = [link for link in links if not (page.parent / link).exists()]
    assert not dead, dead


def test_blocks_are_found_with_their_flags_and_lines():
    text = "a\n```python\nx = 1\n```\n~~~python no-run\n```\n~~~\n````sh\n$ make demo  # first\n```\n````\n"
    first, second, third = markdown.blocks(text)
    assert (first.text, first.line, first.is_run) == ("x = 1\n", 3, True)
    assert (second.text, second.is_run) == ("```\n", False)
    assert third.text == "$ make demo  # first\n```\n"
    assert markdown.shell_commands(text) == ["make demo", "```"]


def test_links_in_code_and_to_other_sites_are_left_alone():
    text = "[a](b.md#c) `[x](y)` [w](https://example.com/z)\n```\n[in](code)\n```\n[d](<e.md>)"
    assert markdown.local_links(text) == ["b.md", "e.md"]
