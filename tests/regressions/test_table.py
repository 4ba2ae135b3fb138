"""The table of silent failures in docs/differences.md names tests that are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.markdown import ROOT

PAGE = ROOT / "docs" / "differences.md"
HEADING = "## Silent failures that users reported"
LINK = re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")
OWN_FOLDER = ROOT / "tests" / "regressions"


def section() -> str:
    text = PAGE.read_text(encoding="utf-8")
    begin = text.index(HEADING)
    end = text.find("\n## ", begin + 1)
    return text[begin : end if end >= 0 else None]


def rows() -> list[list[str]]:
    lines = [line for line in section().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def names_of_tests(path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_every_row_links_to_a_test_that_is_there(row):
    assert len(row) == 4
    links = LINK.findall(row[3])
    assert links
    for name, target in links:
        path = (PAGE.parent / target).resolve()
        assert path.is_relative_to(ROOT)
        assert name in names_of_tests(path)


def test_every_regression_test_has_a_row():
    linked = {name for row in rows() for name, _ in LINK.findall(row[3])}
    written = [path for path in OWN_FOLDER.glob("test_*.py") if path.name != "test_table.py"]
    assert {name for path in written for name in names_of_tests(path)} <= linked


def test_the_counts_below_the_table_are_right():
    told = re.search(r"^(\d+) rows\. (\d+) threads are left out", section(), re.MULTILINE)
    assert told
    assert int(told[1]) == len(rows())
    listed = re.search(r": (.*?)\.\n", section()[told.start() :], re.DOTALL)
    assert listed
    assert int(told[2]) == len(re.findall(r"\b[\w-]+#\d+", listed[1]))
