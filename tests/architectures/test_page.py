"""The page that lists the architectures says what is measured."""

from __future__ import annotations

import pytest
import transformers

from tests.architectures import table
from tests.architectures.compress import LEAST_COSINE


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="the page has the names of transformers 5")
def test_the_page_lists_what_is_int8_and_what_is_not():
    recorded = [line.rsplit("|", 2) for line in table.table_of(table.PAGE.read_text(encoding="utf-8"))]
    measured = [line.rsplit("|", 2) for line in table.lines()]
    assert [start for start, _, _ in recorded] == [start for start, _, _ in measured], (
        "The table differs. If that is meant: python -m tests.architectures.table --update"
    )
    assert all(float(cosine) > LEAST_COSINE["static"] for _, cosine, _ in recorded[2:])


def test_the_table_is_exchanged_and_the_rest_of_the_page_stays(monkeypatch):
    monkeypatch.setattr(table, "lines", lambda: ["| new |"])
    assert table.updated("# Title\n\nWords.\n\n| old |\n| older |\n\nMore.\n") == (
        "# Title\n\nWords.\n\n| new |\n\nMore.\n"
    )
