"""``inc-torch report``: what was asked of each layer of a saved model, and what was reached."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from inc_torch.cli._errors import told_briefly
from inc_torch.cli._output import write_text
from inc_torch.core.errors import ArtifactError
from inc_torch.model import inspect_saved

__all__ = ["report"]


def report(
    directory: Annotated[
        Path,
        typer.Argument(
            help="A directory of model.save, manager.save or save_for_huggingface_upstream.", show_default=False
        ),
    ],
    json: Annotated[
        Path | None, typer.Option(help="Write it as JSON to this file instead; - prints it.", metavar="FILE")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write it as a page for a browser to this file instead.", metavar="FILE")
    ] = None,
) -> None:
    """Show the compression report of a saved model: each layer, its zeros, its bits, and why it was left alone.

    The report was measured from the weights as they were saved. Loading the model measures it again.

    Example: inc-torch report minilm-int8
    """
    with told_briefly():
        found = inspect_saved(directory)
        if found.report is None:
            message = (
                f"{found.path!r} has no compression report, as inc_torch did not save it ({found.kind}). To see what "
                "it holds: inc-torch inspect."
            )
            raise ArtifactError(message)
        if json is not None:
            write_text(json, json_format.dumps(found.report.to_dict(), indent=2))
        if html is not None:
            write_text(html, found.report.html())
        if json is None and html is None:
            Console().print(found.report)
