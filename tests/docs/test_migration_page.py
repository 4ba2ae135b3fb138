"""The page about migration: its blocks for 1.X and 2.X, migrated and run, leave what the blocks beside them do."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from inc_torch.migrate import migrate_source
from tests.docs.markdown import ROOT, Block, blocks

PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
ALL = list(blocks(PAGE))
COMPARED = ("result", "dynamic", "by_epochs")
"""Variables that hold what a block makes, where all columns make the same."""


def _of(column: str) -> list[Block]:
    """The blocks of a column, after the names that all of them use."""
    shared = next(block for block in ALL if "network = nn.Sequential" in block.text)
    if column == "inc_torch":
        return [block for block in ALL if block.is_run]
    return [shared, *(block for block in ALL if column in block.flags)]


def _left_by(column: str) -> dict[tuple[str, int], nn.Module]:
    """What the blocks of a column make, by variable and section."""
    names, left = {"__name__": "__main__"}, {}
    for block in _of(column):
        text = block.text
        if column != "inc_torch":
            migrated = migrate_source(text)
            assert migrated.findings == (), block.line
            assert "neural_compressor" not in migrated.text
            text = migrated.text
        before = {name: names.get(name) for name in COMPARED}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile("\n" * (block.line - 1) + text, "docs/migration.md", "exec"), names)
        for name in COMPARED:
            if names.get(name) is not before[name]:
                left[name, _section(block)] = names[name]
    return left


def _section(block: Block) -> int:
    return sum(line.startswith("### ") for line in PAGE.splitlines()[: block.line])


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in ALL:
        if block.language == "yaml":
            (name,) = block.flags
            Path(name).write_text(block.text)


@pytest.mark.filterwarnings("ignore:inc_torch.experimental:DeprecationWarning")
@pytest.mark.parametrize(("column", "fewest"), [("1.x", 8), ("2.x", 6)])
def test_columns_leave_the_same(files, column, fewest):
    theirs, ours = _left_by(column), _left_by("inc_torch")
    both = theirs.keys() & ours.keys()
    assert len(both) >= fewest, sorted(both)
    for key in both:
        one, other = theirs[key].state_dict(), ours[key].state_dict()
        assert one.keys() == other.keys(), key
        assert all(torch.equal(one[name], other[name]) for name in one), key


def test_every_task_has_its_columns():
    sections = PAGE.partition("## Every task side by side")[2].partition("## Keys of YAML")[0].split("\n### ")[1:]
    without_1x = {"Weights of a few bits", "Saving, loading, and the hub", "transformers' Trainer"}
    without_2x = {"One technique after another", "transformers' Trainer"}
    for section in sections:
        title = section.partition("\n")[0]
        assert ("python no-run 1.x" in section) is (title not in without_1x), title
        assert ("python no-run 2.x" in section) is (title not in without_2x), title
        assert "\n```python\n" in section or title == "transformers' Trainer", title
    assert len(sections) == 14


def test_files_of_the_page_become_modules(files):
    from inc_torch.migrate import migrate_paths

    outcome = migrate_paths(sorted(Path().glob("*.yaml")))
    assert not outcome.failed
    assert not outcome.undecided
    assert len(outcome.changed) == 9
