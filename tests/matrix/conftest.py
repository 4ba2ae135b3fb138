"""Collect what the cells report, and write the page if all of them were run."""

from __future__ import annotations

import pytest

from tests.matrix.cells import Cell
from tests.matrix.page import PAGE, page

OUTCOME, REFUSAL = "matrix outcome", "matrix refusal"


def pytest_addoption(parser):
    parser.addoption("--write-matrix", action="store_true", help="write docs/support_matrix.md from this run")


def pytest_configure(config):
    if config.getoption("--write-matrix", False) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Collector(), "matrix")


@pytest.fixture
def report(record_property):
    """Say how a cell ended: ``report(cell, outcome="50 %")`` or ``report(cell, refusal=message)``."""

    def write(cell: Cell, **ends: str) -> None:
        ((end, text),) = ends.items()
        record_property(f"matrix {end}", (cell.loop, cell.subject, cell.technique, text))

    return write


class _Collector:
    """Sees the reports of all workers."""

    def __init__(self):
        self.found = {OUTCOME: {}, REFUSAL: {}}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            for name, value in report.user_properties:
                if name in self.found:
                    *names, text = value
                    self.found[name][Cell(*names)] = text

    def pytest_terminal_summary(self, terminalreporter):
        try:
            PAGE.write_text(page(self.found[OUTCOME], self.found[REFUSAL]), encoding="utf-8")
        except ValueError as error:
            terminalreporter.write_line(str(error), red=True)
        else:
            terminalreporter.write_line(f"Written: {PAGE}")
