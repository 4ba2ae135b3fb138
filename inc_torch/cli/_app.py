"""All sub-commands together. A new one is a function in a module of its own, and a line here."""

from __future__ import annotations

from typing import Annotated

import typer

import inc_torch
from inc_torch.cli._benchmark import benchmark
from inc_torch.cli._inspect import inspect
from inc_torch.cli._migrate import migrate
from inc_torch.cli._quantize import quantize
from inc_torch.cli._report import report

__all__ = ["app"]

app = typer.Typer(
    name="inc-torch",
    help="Compress PyTorch models, and see what came of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(inc_torch.__version__)
        raise typer.Exit


@app.callback()
def _all_commands(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Keep the name of a sub-command necessary, however few there are."""


app.command()(quantize)
app.command()(report)
app.command()(inspect)
app.command()(benchmark)
app.command()(migrate)
