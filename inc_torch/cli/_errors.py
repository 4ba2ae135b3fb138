"""Errors of the package as a line on the screen and an exit code, instead of a trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from inc_torch.core.errors import ConfigError, IncTorchError, IncTorchWarning

__all__ = ["FAILED", "WRONG", "told_briefly"]

FAILED: Final = 1
WRONG: Final = 2


@contextmanager
def told_briefly() -> Iterator[None]:
    """Print errors and warnings that the package raises on purpose, and exit; bugs keep their trace."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", IncTorchWarning)
        try:
            yield
        except IncTorchError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(WRONG if isinstance(error, ConfigError) else FAILED) from error
        finally:
            for warning in caught:
                if issubclass(warning.category, IncTorchWarning):
                    typer.echo(f"Warning: {warning.message}", err=True)
