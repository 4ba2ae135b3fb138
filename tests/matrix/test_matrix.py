"""Run the cells: a quick row of each kind always, all of them with ``make matrix``."""

from __future__ import annotations

import pytest

from tests.matrix.cells import Cell, cells
from tests.matrix.page import PAGE, page

QUICK = ("transformers-bert", "graph-swin")
REFUSED: dict[Cell, str] = {}
"""The message of each cell that is refused; there is none at present."""


PARAMETERS = [
    pytest.param(cell, id=str(cell), marks=() if cell.subject in QUICK else pytest.mark.slow) for cell in cells()
]


@pytest.mark.filterwarnings("ignore:Pruning '4x1' leaves .* of the selected layers dense")  # ConvNeXt, Wav2Vec2
@pytest.mark.parametrize("cell", PARAMETERS)
def test_each_cell_passes_or_is_refused_with_the_reason(cell, report, tmp_path):
    reason = REFUSED.get(cell)
    if reason is None:
        report(cell, outcome=cell.run(tmp_path))
        return
    with pytest.raises(Exception, match=reason) as refused:
        cell.run(tmp_path)
    report(cell, refusal=str(refused.value))


def test_the_page_has_every_cell():
    every = {cell: str(cell) for cell in cells()}
    written = page(every, {})
    assert all(f"| {text} |" in written for text in every.values())
    assert written.endswith("\n")
    assert "475 cells pass, 0 are refused." in written
    first, *others = every
    with pytest.raises(ValueError, match=f"1 cells were not run or failed, such as {first}"):
        page(dict.fromkeys(others, "yes"), {})
    refused = page(dict.fromkeys(others, "yes"), {first: "No such thing."})
    assert "| refused (1) |" in refused
    assert "(1) No such thing." in refused


def test_the_page_that_is_published_comes_from_a_whole_run():
    published = PAGE.read_text(encoding="utf-8")
    passing = 475 - len(REFUSED)
    assert f"{passing} cells pass, {len(REFUSED)} are refused." in published
    rows = [line for line in published.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) == 4 * 26
