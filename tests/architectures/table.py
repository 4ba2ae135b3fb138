"""Write the table of docs/architectures.md: ``python -m tests.architectures.table --update``, from the root."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tests.architectures.compress import compressed, cosine, float_reasons, int8_kinds, scores
from tests.architectures.zoo import ZOO, Architecture

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
HEADER = ("architecture", "class", "int8 modules", "in float, with the reason", "cosine")


def row(architecture: Architecture) -> tuple[str, ...]:
    """Measure one architecture, quantized with static ranges."""
    case = compressed(architecture.name, "static")
    int8 = ", ".join(f"{count} {kind}" for kind, count in sorted(int8_kinds(case.model).items(), reverse=True))
    reached = cosine(scores(case.model, architecture.other_batch()), case.expected)
    in_float = float_cell(float_reasons(case.report))
    return architecture.name, architecture.model_class.__name__, int8, in_float, f"{reached:.4f}"


def float_cell(reasons: Mapping[str, str]) -> str:
    """Every reason with the names of the modules that it holds for."""
    names = defaultdict(list)
    for name, reason in reasons.items():
        names[reason].append(f"`{name}`")
    return "<br>".join(f"{', '.join(listed)}: {reason}" for reason, listed in names.items()) or "nothing"


def lines() -> list[str]:
    """The lines of the table."""
    rows = [HEADER, ("---",) * len(HEADER), *map(row, ZOO.values())]
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def table_of(page: str) -> list[str]:
    """The lines of the one table on a page."""
    return [line for line in page.splitlines() if line.startswith("|")]


def updated(page: str) -> str:
    """The page with the table as it is measured now."""
    before, _, rest = page.partition("\n|")
    after = rest.rpartition("|\n")[2]
    return "\n".join([before, *lines(), after])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the table into the page instead of showing it")
    if parser.parse_args().update:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write("\n".join([*lines(), ""]))


if __name__ == "__main__":
    main()
