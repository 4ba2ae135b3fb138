"""``inc-torch migrate``: scripts of Intel Neural Compressor, rewritten for this package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from inc_torch.cli._errors import FAILED, told_briefly
from inc_torch.migrate import Outcome, migrate_paths

__all__ = ["migrate"]

_UNDECIDED: Final = 3
_STYLES: Final = {"+": "green", "-": "red", "@": "cyan"}


def migrate(
    paths: Annotated[
        list[Path], typer.Argument(help="Scripts, YAML files of 1.X, or directories.", show_default=False)
    ],
    *,
    write: Annotated[bool, typer.Option("--write", help="Change the files instead of printing a diff.")] = False,
    to_2x: Annotated[
        bool, typer.Option("--to-2x", help="Also move classes and YAML of 1.X to functions and configs.")
    ] = False,
) -> None:
    """Rewrite scripts and YAML of Intel Neural Compressor for inc_torch.

    Prints a diff and writes nothing, unless --write is given. The diff is on
    the standard output, for `git apply` or `patch`. What is left to decide is
    on the standard error, with line numbers; a comment `# inc-torch: keep` says
    of a line that it was looked at.

    Exit codes: 0 if nothing is left to decide, 1 if a file could not be read,
    parsed or written, 2 if the command line is wrong, 3 if something is left
    to decide.

    Example: inc-torch migrate src/ --write
    """
    with told_briefly():
        outcome = migrate_paths(paths, write=write, to_2x=to_2x)
    if not write:
        _show_diffs(outcome)
    typer.echo(_report(outcome, is_written=write), err=True)
    if outcome.failed:
        raise typer.Exit(FAILED)
    if outcome.undecided:
        raise typer.Exit(_UNDECIDED)


def _show_diffs(outcome: Outcome) -> None:
    console = Console()
    for file in outcome.changed:
        if not console.is_terminal:
            sys.stdout.write(file.diff())  # as it is, with the newlines of the file
            continue
        for line in file.diff().splitlines():
            console.print(Text(line, style=_STYLES.get(line[:1], "")), soft_wrap=True)


def _report(outcome: Outcome, *, is_written: bool) -> str:
    parts = [f"{file.path}: {file.error}" for file in outcome.failed]
    parts += [finding.at(str(file.path)) for file in outcome.files for finding in file.findings]
    count = sum(len(file.findings) for file in outcome.files)
    summary = (
        f"{_counted(len(outcome.files), 'file')} read, {len(outcome.changed)} "
        f"{'changed' if is_written else 'to change'}, {len(outcome.failed)} failed, {outcome.skipped} of other kinds "
        f"skipped; {_counted(count, 'thing')} for you to decide."
    )
    hint = "" if is_written or not outcome.changed else " Nothing was written; --write does."
    return "\n".join([*parts, summary + hint])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
