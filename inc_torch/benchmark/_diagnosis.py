"""The profile that ``diagnosis=True`` asks for: INC's files and its table, of torch's profiler."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from inc_torch.config import options

__all__ = ["profile_table", "write_profile"]

_COLUMNS: Final = {
    "node_name": "Node Name",
    "total_execution_time": "Total Execution Time [us]",
    "accelerator_execution_time": "Accelerator Execution Time [us]",
    "cpu_execution_time": "CPU Execution Time [us]",
    "op_run": "OP Run",
    "op_defined": "OP Defined",
}
_MOST: Final = 20


def profile_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The slowest operators in columns of plain text.

    Example:
        >>> print(profile_table([dict.fromkeys(_COLUMNS, 1) | {"node_name": "aten::addmm"}]).splitlines()[-1].split())
        ['aten::addmm', '1', '1', '1', '1', '1']
    """
    short = ("Profiling", "total us", "accelerator us", "CPU us", "op run", "op defined")
    cells = [short, *(tuple(str(row[name]) for name in _COLUMNS) for row in rows[:_MOST])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def write_profile(rows: Sequence[Mapping[str, Any]]) -> Path | None:
    """Write INC's ``diagnosis.log``, ``profiling_table.csv`` and ``profiling_data.json`` into the workspace.

    Returns:
        The folder; None if no workspace was set (`inc_torch.set_workspace`), or it is a database.
    """
    if options.workspace is None or "://" in options.workspace or Path(options.workspace).is_file():
        return None
    folder = Path(options.workspace)
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS.values())
    writer.writerows([row[name] for name in _COLUMNS] for row in rows)
    (folder / "profiling_table.csv").write_text(text.getvalue(), encoding="utf-8")
    (folder / "profiling_data.json").write_text(json.dumps(list(map(dict, rows)), indent=1) + "\n", encoding="utf-8")
    (folder / "diagnosis.log").write_text(f"{profile_table(rows)}\n", encoding="utf-8")
    return folder
